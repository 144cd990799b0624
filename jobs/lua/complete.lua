-- Makes the joined parts of an upload a file that clients see. Of several orders of the parts, the first to come counts.
-- KEYS: upload, file, its tenant's list, files by expiry, sequence, bytes stored by its tenant, limits of all tenants.
-- ARGV: file id, MD5, when the file expires or '', bytes, the limit's field, field, value...
-- Returns false, or {limit, bytes stored} where there is no room for the file: the upload then still waits.
if redis.call('HGET', KEYS[1], 'status') ~= 'pending' then return false end
local stored = tonumber(redis.call('HGET', KEYS[6], 'total')) or 0
local limit = redis.call('HGET', KEYS[7], ARGV[5])
limit = limit and tonumber(limit)
if limit and stored + ARGV[4] > limit then
  return {string.format('%.0f', limit), string.format('%.0f', stored)}
end
redis.call('HSET', KEYS[1], 'status', 'completed', 'file_id', ARGV[1], 'md5', ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 6))
redis.call('HSET', KEYS[6], ARGV[1], ARGV[4])
redis.call('HINCRBY', KEYS[6], 'total', ARGV[4])
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[5]), ARGV[1])
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1]) end
return false
