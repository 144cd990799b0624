#!lua
-- Takes the first waiting shards of a running batch. KEYS: batch, waiting, queued.
-- ARGV: most that may be queued at a time, most to take now. Returns shard indexes.
local batch = redis.call('HMGET', KEYS[1], 'status', 'paused')
if batch[1] ~= 'in_progress' or batch[2] == '1' then return {} end
local room = math.min(tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[3]), tonumber(ARGV[2]))
if room <= 0 then return {} end
local taken = redis.call('ZRANGE', KEYS[2], 0, room - 1)
for _, shard in ipairs(taken) do
  redis.call('ZREM', KEYS[2], shard)
  redis.call('ZADD', KEYS[3], shard, shard)
end
return taken
