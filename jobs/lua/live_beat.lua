#!lua flags=allow-oom
-- A worker lives, and takes requests or not. KEYS: workers, workers that take requests. ARGV: worker, '1' or '0'.
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
if ARGV[2] == '1' then redis.call('ZADD', KEYS[2], now, ARGV[1]) else redis.call('ZREM', KEYS[2], ARGV[1]) end
for _, key in ipairs(KEYS) do redis.call('ZREMRANGEBYSCORE', key, '-inf', now - 3600) end
