#!lua
-- Puts an online request in line, unless the line is full or no worker takes any. Done twice it stands there once or
-- twice, and is taken once.
-- KEYS: line, bell, workers that take requests, request. ARGV: id, the call, most in line, seconds of a worker's silence
-- after which it counts as dead, seconds until the request is forgotten, '1' if it goes to the front and is not counted.
local time = redis.call('TIME')
local since = time[1] + time[2] / 1000000 - ARGV[4]
if redis.call('ZCOUNT', KEYS[3], since, '+inf') == 0 then return 'away' end
local again = ARGV[6] == '1'
if not again and redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[4], 'call', ARGV[2])
redis.call('EXPIRE', KEYS[4], ARGV[5])
redis.call(again and 'LPUSH' or 'RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
-- Every worker that waits is woken by one ring; those that do not wait look by themselves.
if redis.call('LLEN', KEYS[2]) < 64 then redis.call('RPUSH', KEYS[2], '1') end
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 'ok'
