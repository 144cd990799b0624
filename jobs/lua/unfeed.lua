#!lua flags=allow-oom
-- Forgets batches that nothing is queued of, unless they were fed lately: something may just be on its way.
-- KEYS: batches by the time when they were fed last. ARGV: seconds, ids.
local time = redis.call('TIME')
for i = 2, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) + ARGV[1] < tonumber(time[1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
