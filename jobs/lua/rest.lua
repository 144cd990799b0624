#!lua flags=allow-oom
-- Puts off the next look at batches, unless somebody has asked for one meanwhile (which is the time 0).
-- KEYS: ids by the time of their next look. ARGV: id and time, id and time...
for i = 1, #ARGV, 2 do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) ~= 0 then redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i]) end
end
