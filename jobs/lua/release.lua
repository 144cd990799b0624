#!lua flags=allow-oom
-- Hands a shard back to be fed again. KEYS: waiting, leased, owners, attempts.
-- ARGV: shard, owner, '1' to count the attempt. Returns 1 if it was held.
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1])
-- A line finished since the claim has set the count back already.
if ARGV[3] ~= '1' and redis.call('HEXISTS', KEYS[4], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[4], ARGV[1], -1) end
return 1
