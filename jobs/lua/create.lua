-- Writes a new batch, job or upload. KEYS: it. ARGV: field, value... Returns 1, or 0 if it is there already: it stays as it is.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
