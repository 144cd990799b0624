-- Takes one request out of a tenant's bucket, which holds a minute's requests and fills evenly, by Redis' clock.
-- KEYS: limits of all tenants, bucket, and maybe one that must not be there. ARGV: the limit's field.
-- Returns false where there is no limit, or {granted, limit, requests left, seconds until the next, seconds until full};
-- 'there' where that key is, and then nothing is taken.
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1 then return 'there' end
local limit = tonumber(redis.call('HGET', KEYS[1], ARGV[1]))
if not limit then return false end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local bucket = redis.call('HMGET', KEYS[2], 'left', 'at')
local left = tonumber(bucket[1]) or limit
-- A clock that was set back takes nothing away.
left = math.min(limit, left + math.max(0, now - (tonumber(bucket[2]) or now)) * limit / 60)
local granted = left >= 1 and 1 or 0
left = left - granted
redis.call('HSET', KEYS[2], 'left', string.format('%.6f', left), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[2], 60)
local wait = math.max(0, 1 - left) * 60 / limit
local full = (limit - left) * 60 / limit
return {granted, limit, math.floor(left), string.format('%.3f', wait), string.format('%.3f', full)}
