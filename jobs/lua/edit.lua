-- Changes fields of a hash that is there. KEYS: hash. ARGV: field, value... Returns 1, or 0 where there is none.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
