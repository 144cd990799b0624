#!lua flags=allow-oom
-- Takes the batches that are to be looked at now, so that no other housekeeper looks at them before the interval is over.
-- KEYS: ids by the time of their next look. ARGV: most ids, seconds of the interval.
-- Returns the time of their next look, which names this one, and the ids.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
local next_look = string.format('%.6f', now + ARGV[2])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], next_look, id) end
return {next_look, due}
