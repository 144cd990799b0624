#!lua flags=allow-oom
-- Renews a lease. KEYS: batch, leased, owners. ARGV: shard, owner, seconds of the lease.
-- Returns 1 while the shard is to be run.
local batch = redis.call('HMGET', KEYS[1], 'status', 'expires_at')
local time = redis.call('TIME')
if batch[1] ~= 'in_progress' or tonumber(batch[2]) <= tonumber(time[1]) then return 0 end
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000 + ARGV[3], ARGV[1])
return 1
