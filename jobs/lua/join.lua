-- Notes that parts are about to be joined into a file, so that its bytes are found again whatever becomes of it.
-- KEYS: upload, joins, uploads by the time of their sweeping. ARGV: now, file id, upload id, when to sweep.
-- Returns 'pending', or the status that forbids it.
local upload = redis.call('HMGET', KEYS[1], 'status', 'expires_at')
if not upload[1] then return 'missing' end
if upload[1] ~= 'pending' then return upload[1] end
if tonumber(upload[2]) <= tonumber(ARGV[1]) then return 'expired' end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], 'GT', ARGV[4], ARGV[3])
return 'pending'
