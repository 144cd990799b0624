#!lua flags=allow-oom
-- Puts queued shards that RQ has lost back in line. KEYS: waiting, queued. ARGV: shards. Returns those put back.
local back = {}
for _, shard in ipairs(ARGV) do
  if redis.call('ZREM', KEYS[2], shard) == 1 then
    redis.call('ZADD', KEYS[1], shard, shard)
    back[#back + 1] = shard
  end
end
return back
