-- Puts shards whose lease ran out, and queued shards that the caller found lost, back in line.
-- KEYS: waiting, queued, leased, owners. ARGV: now, lost queued shards... Returns the shards put back.
local back = redis.call('ZRANGE', KEYS[3], '-inf', ARGV[1], 'BYSCORE')
for _, shard in ipairs(back) do
  redis.call('ZREM', KEYS[3], shard)
  redis.call('HDEL', KEYS[4], shard)
  redis.call('ZADD', KEYS[1], shard, shard)
end
for i = 2, #ARGV do
  if redis.call('ZREM', KEYS[2], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i])
    back[#back + 1] = ARGV[i]
  end
end
return back
