#!lua
-- Puts an online request in line, unless the line is full or no worker takes any. Done twice it stands there once or
-- twice, and is taken once.
-- KEYS: bell, workers that take requests, request, those that go ahead of all, who waits, who of the tenant waits, tenants
-- that wait, priorities, turns at this priority, the tenant's line at it, what tenants had of it, its clock.
-- ARGV: id, the call, most in line, seconds of a worker's silence after which it counts as dead, seconds until the
-- request is forgotten, '1' if it goes ahead and is not counted, tenant, priority, price of its turn.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
if redis.call('ZCOUNT', KEYS[2], now - ARGV[4], '+inf') == 0 then return 'away' end
local again, tenant, priority, gone_at = ARGV[6] == '1', ARGV[7], ARGV[8], now + ARGV[5]
if not again then
  for i = 5, 7 do redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now) end
  if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[3]) then
    -- Full is the line only for who fills it: each tenant may have its part.
    local others = redis.call('ZCARD', KEYS[7]) - (redis.call('ZSCORE', KEYS[7], tenant) and 1 or 0)
    if redis.call('ZCARD', KEYS[6]) >= tonumber(ARGV[3]) / (others + 1) then return 'full' end
  end
end
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'call', ARGV[2], 'tenant', tenant, 'priority', priority, 'price', ARGV[9])
redis.call('EXPIRE', KEYS[3], ARGV[5])
if again then
  redis.call('LPUSH', KEYS[4], ARGV[1])
else
  if redis.call('LLEN', KEYS[10]) == 0 then
    -- Who was idle starts where the others are, and not before what it has had.
    local start = tonumber(redis.call('GET', KEYS[12]) or 0)
    for _, key in ipairs({KEYS[9], KEYS[11]}) do
      start = math.max(start, tonumber(redis.call('ZSCORE', key, tenant) or 0))
    end
    redis.call('ZADD', KEYS[9], start, tenant)
  end
  redis.call('RPUSH', KEYS[10], ARGV[1])
  redis.call('ZADD', KEYS[8], priority, priority)
  redis.call('ZADD', KEYS[5], gone_at, ARGV[1])
  redis.call('ZADD', KEYS[6], gone_at, ARGV[1])
  redis.call('ZADD', KEYS[7], 'GT', gone_at, tenant)
end
for i = 4, 10 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
-- Every worker that waits is woken by one ring; those that do not wait look by themselves.
if redis.call('LLEN', KEYS[1]) < 64 then redis.call('RPUSH', KEYS[1], '1') end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 'ok'
