#!lua
-- Changes the priority or the window of a batch that may still run. KEYS: batch, active batches by deadline.
-- ARGV: id, priority or '', window or '', its seconds. Returns the status it had; false if there is no such batch;
-- 'shorter' if the window would end before the present one. What is refused changes nothing.
local batch = redis.call('HMGET', KEYS[1], 'status', 'created_at', 'expires_at', 'reopened_at')
local status = batch[1]
if not status or (status ~= 'validating' and status ~= 'in_progress') then return status end
if ARGV[3] ~= '' then
  local expires_at = tonumber(batch[4] or batch[2]) + tonumber(ARGV[4])
  if expires_at < tonumber(batch[3]) then return 'shorter' end
  redis.call('HSET', KEYS[1], 'completion_window', ARGV[3], 'expires_at', string.format('%.0f', expires_at))
  redis.call('ZADD', KEYS[2], 'XX', expires_at, ARGV[1])
end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'priority', ARGV[2]) end
return status
