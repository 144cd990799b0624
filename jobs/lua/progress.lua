-- How far a batch has got. KEYS: batch, shards, waiting, queued, leased.
-- ARGV: what the names of its spools begin with, '1' to count the lines that are running, fields of the batch...
-- Returns {fields, shards waiting, queued and leased, lines running}.
local fields = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
local running = 0
if ARGV[2] == '1' then
  for _, shard in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    local geometry = redis.call('HGET', KEYS[2], shard)
    if geometry then
      local lines = tonumber(string.match(geometry, '^%d+:(%d+)'))
      running = running + lines - redis.call('HLEN', ARGV[1] .. shard)
    end
  end
end
return {fields, redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]), redis.call('ZCARD', KEYS[5]), running}
