#!lua flags=allow-oom
-- Puts off the next look at batches, unless somebody has asked for one or looked since: what was seen may have changed.
-- KEYS: ids by the time of their next look. ARGV: what names the look, id and time, id and time...
for i = 2, #ARGV, 2 do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) == tonumber(ARGV[1]) then redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i]) end
end
