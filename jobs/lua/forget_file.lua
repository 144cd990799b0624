#!lua flags=allow-oom
-- Drops what is known of a file. ARGV: file id.
-- KEYS: file, its tenant's list, files by expiry, bytes stored by its tenant, files whose bytes are on their way.
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
local bytes = redis.call('HGET', KEYS[4], ARGV[1])
if bytes then
  redis.call('HDEL', KEYS[4], ARGV[1])
  redis.call('HINCRBY', KEYS[4], 'total', '-' .. bytes)
end
