-- Notes how an attempt to deliver went. KEYS: delivery, deliveries by due time.
-- ARGV: delivery id, until when it was taken, when to try again or '' for never, field, value...
-- Returns 1, or 0 where somebody else has taken it since, whose attempt counts.
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
end
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], unpack(ARGV, 4)) end
return 1
