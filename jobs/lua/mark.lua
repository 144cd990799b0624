#!lua flags=allow-oom
-- A write that follows all that were made before, to be waited for. KEYS: the sequence of created things.
return redis.call('INCR', KEYS[1])
