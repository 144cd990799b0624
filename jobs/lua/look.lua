#!lua flags=allow-oom
-- Has batches looked at next. KEYS: ids by the time of their next look. ARGV: ids.
for _, id in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 0, id) end
