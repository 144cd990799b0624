-- Which requests nobody will answer: their worker is silent, no worker takes any, or they are not there any more.
-- KEYS: workers, those that take requests, then requests. ARGV: seconds of a worker's silence after which it counts as
-- dead.
-- Returns 1 or 0 for each request.
local time = redis.call('TIME')
local since = time[1] + time[2] / 1000000 - ARGV[1]
local is_taken_on = redis.call('ZCOUNT', KEYS[2], since, '+inf') > 0
local lost = {}
for i = 3, #KEYS do
  local request = redis.call('HMGET', KEYS[i], 'call', 'worker')
  local beat = request[2] and redis.call('ZSCORE', KEYS[1], request[2])
  local lives = beat and tonumber(beat) >= since
  lost[i - 2] = request[1] and (lives or (not request[2] and is_taken_on)) and 0 or 1
end
return lost
