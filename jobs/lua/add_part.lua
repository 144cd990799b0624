-- Adds a part, whose bytes are in the blob store, to an upload. KEYS: upload, parts.
-- ARGV: now, part id, size, most parts. Returns 'ok', 'many' or 'large' (what was refused, and why), 'missing', or the
-- status that forbids it. Parts that are sent twice stay, so together they may have twice the bytes of the file.
local upload = redis.call('HMGET', KEYS[1], 'status', 'expires_at', 'bytes', 'held')
if not upload[1] then return 'missing' end
if upload[1] ~= 'pending' then return upload[1] end
if tonumber(upload[2]) <= tonumber(ARGV[1]) then return 'expired' end
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[4]) then return 'many' end
if tonumber(upload[4]) + tonumber(ARGV[3]) > 2 * tonumber(upload[3]) then return 'large' end
redis.call('HINCRBY', KEYS[1], 'held', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 'ok'
