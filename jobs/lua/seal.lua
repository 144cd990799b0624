#!lua flags=allow-oom
-- The shard's segment is safe in the blob store: drop its spool. The last one makes the batch ready to finish.
-- KEYS: batch, leased, owners, attempts, sealed, spool. ARGV: shard, owner, lines in the shard, segment sizes, now.
-- Returns 'lost', 'ok' or 'last'. A spool that a crash of Redis has cut short is lost too: its counters fell with it.
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 'lost' end
if redis.call('HLEN', KEYS[6]) ~= tonumber(ARGV[3]) then return 'lost' end
redis.call('HSET', KEYS[5], ARGV[1], ARGV[4])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[6])
if redis.call('HLEN', KEYS[5]) < tonumber(redis.call('HGET', KEYS[1], 'num_shards')) then return 'ok' end
if redis.call('HGET', KEYS[1], 'status') == 'in_progress' then
  redis.call('HSET', KEYS[1], 'status', 'finalizing', 'finalizing_at', ARGV[5])
end
return 'last'
