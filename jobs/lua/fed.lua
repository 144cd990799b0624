#!lua
-- Notes that batches are about to be fed. KEYS: batches by the time when they were fed last. ARGV: ids.
local time = redis.call('TIME')
for _, id in ipairs(ARGV) do redis.call('ZADD', KEYS[1], time[1], id) end
