-- Renews a lease. KEYS: batch, leased, owners. ARGV: shard, owner, lease end. Returns 1 while the shard is to be run.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 1
