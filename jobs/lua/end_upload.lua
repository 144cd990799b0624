-- Ends an upload that waits for its parts. KEYS: upload. ARGV: now, 'cancelled' or 'expired'.
-- Returns its status then; one whose time is up is not cancelled any more.
local upload = redis.call('HMGET', KEYS[1], 'status', 'expires_at')
if not upload[1] then return 'missing' end
if upload[1] ~= 'pending' then return upload[1] end
if ARGV[2] == 'cancelled' and tonumber(upload[2]) <= tonumber(ARGV[1]) then return 'expired' end
redis.call('HSET', KEYS[1], 'status', ARGV[2])
return ARGV[2]
