#!lua flags=allow-oom
-- What there is to do for a batch; one whose window is over begins to expire, and in a running one shards whose lease
-- ran out go back in line.
-- KEYS: batch, waiting, leased, owners, attempts. ARGV: most claims in a row without a finished line.
-- Returns false, or {status, closing, shards put back, shards that nobody holds and whose claims are spent}.
local batch = redis.call('HMGET', KEYS[1], 'status', 'closing', 'expires_at')
local status, closing = batch[1], batch[2] or ''
if not status then return false end
local time = redis.call('TIME')
-- Here, and not by who has looked at the window before: it may be extended at any time.
if (status == 'validating' or status == 'in_progress') and tonumber(batch[3]) <= tonumber(time[1]) then
  status, closing = 'finalizing', 'expired'
  redis.call('HSET', KEYS[1], 'status', status, 'closing', closing, 'finalizing_at', time[1])
end
local back, spent = {}, {}
if status == 'in_progress' then
  back = redis.call('ZRANGE', KEYS[3], '-inf', time[1] + time[2] / 1000000, 'BYSCORE')
  for _, shard in ipairs(back) do
    redis.call('ZREM', KEYS[3], shard)
    redis.call('HDEL', KEYS[4], shard)
    redis.call('ZADD', KEYS[2], shard, shard)
  end
  local attempts = redis.call('HGETALL', KEYS[5])
  for i = 1, #attempts, 2 do
    if tonumber(attempts[i + 1]) >= tonumber(ARGV[1]) and not redis.call('ZSCORE', KEYS[3], attempts[i]) then
      spent[#spent + 1] = attempts[i]
    end
  end
end
return {status, closing, back, spent}
