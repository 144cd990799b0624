#!lua flags=allow-oom
-- Forgets a model, unless a worker has said meanwhile that it serves it. KEYS: when models were last served.
-- ARGV: model, oldest time at which it is still known. Returns whether it is not known any more.
local at = redis.call('HGET', KEYS[1], ARGV[1])
if at and tonumber(at) >= tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
