#!lua flags=allow-oom
-- Leaves messages for an API process, if it lives. KEYS: its messages, its sign of life. ARGV: the messages, seconds
-- that they are kept at most. Returns 0 for a process that is dead.
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
