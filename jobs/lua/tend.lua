#!lua flags=allow-oom
-- What there is to do for a batch; in a running one, shards whose lease ran out go back in line.
-- KEYS: batch, waiting, leased, owners, attempts. ARGV: most claims in a row without a finished line.
-- Returns false, or {status, closing, expires_at, shards put back, shards that nobody holds and whose claims are spent}.
local batch = redis.call('HMGET', KEYS[1], 'status', 'closing', 'expires_at')
if not batch[1] then return false end
local back, spent = {}, {}
if batch[1] == 'in_progress' then
  local time = redis.call('TIME')
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
return {batch[1], batch[2] or '', batch[3], back, spent}
