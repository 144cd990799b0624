-- Puts an event in line for one endpoint. KEYS: delivery, deliveries by due time, the endpoint's log, sequence.
-- ARGV: delivery id, now, seconds to keep it, most in the log, field, value... A second time changes nothing.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[4]), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[4]))
redis.call('EXPIRE', KEYS[3], ARGV[3])
return 1
