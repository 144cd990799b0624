-- Makes the joined parts of an upload a file that clients see. Of several orders of the parts, the first to come counts.
-- KEYS: upload, file, files, files by expiry, sequence. ARGV: file id, MD5, when the file expires or '', field, value...
-- Returns the status that the upload had, and the file that it has.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'pending' then return {status or 'missing', redis.call('HGET', KEYS[1], 'file_id') or ''} end
redis.call('HSET', KEYS[1], 'status', 'completed', 'file_id', ARGV[1], 'md5', ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[5]), ARGV[1])
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1]) end
return {status, ARGV[1]}
