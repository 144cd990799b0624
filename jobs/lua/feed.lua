#!lua
-- Takes the first waiting shards of a running batch, as many as its window has room for.
-- KEYS: batch, waiting, queued. ARGV: window. Returns shard indexes.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return {} end
local room = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[3])
if room <= 0 then return {} end
local taken = redis.call('ZRANGE', KEYS[2], 0, room - 1)
for _, shard in ipairs(taken) do
  redis.call('ZREM', KEYS[2], shard)
  redis.call('ZADD', KEYS[3], shard, shard)
end
return taken
