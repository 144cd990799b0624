#!lua flags=allow-oom
-- Writes a file's description, lists it and counts its bytes; writing it again changes no place and no count.
-- KEYS: file, its tenant's list, sequence, files by expiry, bytes stored by its tenant, limits of all tenants, files whose
-- bytes are on their way.
-- ARGV: file id, bytes, expires_at or '', the limit's field or '' to write it whatever there is room for, field, value...
-- Returns false, or {limit, bytes stored} where there is no room for it.
local was = tonumber(redis.call('HGET', KEYS[5], ARGV[1])) or 0
local stored = tonumber(redis.call('HGET', KEYS[5], 'total')) or 0
local limit = ARGV[4] ~= '' and tonumber(redis.call('HGET', KEYS[6], ARGV[4]))
if limit and stored - was + ARGV[2] > limit then
  return {string.format('%.0f', limit), string.format('%.0f', stored)}
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('HSET', KEYS[5], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[5], 'total', string.format('%.0f', ARGV[2] - was))
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1]) end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
end
redis.call('ZREM', KEYS[7], ARGV[1])
return false
