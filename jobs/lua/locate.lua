-- Which shard of a batch holds a line, and whether it is sealed. Changes nothing.
-- KEYS: shards, sealed. ARGV: 0-based place of the line in the order in which the batch is run.
-- Returns false where there are no shards, or {shard, geometry, what is sealed or ''}; beyond the end, the last shard.
local low, high = 0, redis.call('HLEN', KEYS[1]) - 1
if high < 0 then return false end
while low < high do
  local middle = math.ceil((low + high) / 2)
  local first = tonumber(string.match(redis.call('HGET', KEYS[1], middle), '^%d+'))
  if first <= tonumber(ARGV[1]) then low = middle else high = middle - 1 end
end
return {low, redis.call('HGET', KEYS[1], low), redis.call('HGET', KEYS[2], low) or ''}
