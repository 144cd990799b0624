#!lua flags=allow-oom
-- Makes a file expired. KEYS: file, files by expiry. ARGV: file id, now.
-- Returns 1, or 0 if there is no such file or it had expired before.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local expires_at = redis.call('HGET', KEYS[1], 'expires_at')
if expires_at and tonumber(expires_at) <= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'expires_at', '0')
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
