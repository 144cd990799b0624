-- Gives a shard to a new owner; whoever held it before can no longer commit.
-- KEYS: batch, shards, waiting, queued, leased, owners, attempts, sealed, spool.
-- ARGV: shard, owner, seconds of the lease, '1' to claim whatever the batch's status (to wind it up).
-- Returns false, or {geometry, attempts, committed line indexes}.
local status = redis.call('HGET', KEYS[1], 'status')
if not status or (status ~= 'in_progress' and ARGV[4] ~= '1') then return false end
local geometry = redis.call('HGET', KEYS[2], ARGV[1])
if not geometry or redis.call('HEXISTS', KEYS[8], ARGV[1]) == 1 then return false end
local time = redis.call('TIME')
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[5], time[1] + time[2] / 1000000 + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[6], ARGV[1], ARGV[2])
local attempts = redis.call('HINCRBY', KEYS[7], ARGV[1], 1)
return {geometry, attempts, redis.call('HKEYS', KEYS[9])}
