#!lua flags=allow-oom
-- Pauses a batch, or lets it go on. A paused one is neither fed nor claimed; what waited in RQ goes back in line.
-- KEYS: batch, waiting, queued. ARGV: '1' to pause, '0' to go on.
-- Returns false if there is no such batch, or {status, closing, '1' if it was done, shards put back}.
local batch = redis.call('HMGET', KEYS[1], 'status', 'closing')
if not batch[1] then return false end
local running = batch[1] == 'validating' or batch[1] == 'in_progress'
if not running then return {batch[1], batch[2] or '', '0', {}} end
redis.call('HSET', KEYS[1], 'paused', ARGV[1])
local back = {}
if ARGV[1] == '1' then
  back = redis.call('ZRANGE', KEYS[3], 0, -1)
  for _, shard in ipairs(back) do
    redis.call('ZREM', KEYS[3], shard)
    redis.call('ZADD', KEYS[2], shard, shard)
  end
end
return {batch[1], batch[2] or '', '1', back}
