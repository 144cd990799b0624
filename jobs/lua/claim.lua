#!lua
-- Gives a shard to a new owner; whoever held it before can no longer commit.
-- KEYS: batch, shards, waiting, queued, leased, owners, attempts, sealed, spool.
-- ARGV: shard, owner, seconds of the lease, '1' to claim whatever the batch's status (to wind it up), and how many claims
-- in vain make it a suspect, which is not to be claimed, or ''.
-- Returns false, {} for a suspect, or {geometry, attempts, committed line indexes, the batch's fields}.
local batch = redis.call('HMGET', KEYS[1], 'status', 'expires_at', 'paused')
local time = redis.call('TIME')
local runs = batch[1] == 'in_progress' and batch[3] ~= '1' and tonumber(batch[2]) > tonumber(time[1])
if not batch[1] or not (runs or ARGV[4] == '1') then return false end
local geometry = redis.call('HGET', KEYS[2], ARGV[1])
if not geometry or redis.call('HEXISTS', KEYS[8], ARGV[1]) == 1 then return false end
if ARGV[5] ~= '' and tonumber(redis.call('HGET', KEYS[7], ARGV[1]) or 0) >= tonumber(ARGV[5]) then return {} end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[5], time[1] + time[2] / 1000000 + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[6], ARGV[1], ARGV[2])
if ARGV[4] ~= '1' then redis.call('HSETNX', KEYS[1], 'started_at', time[1]) end
local attempts = redis.call('HINCRBY', KEYS[7], ARGV[1], 1)
return {geometry, attempts, redis.call('HKEYS', KEYS[9]), redis.call('HGETALL', KEYS[1])}
