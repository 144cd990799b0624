#!lua
-- Moves a job that was just put last in its queue ahead of all that are of a lower priority, which lie behind the others.
-- KEYS: queue, the job's record in RQ. ARGV: the job's id in RQ, priority, what the keys of records begin with.
-- A job without a priority in its record, such as one of an earlier version, has 0.
local priority = tonumber(ARGV[2])
local function at_least(place)
  return tonumber(redis.call('HGET', ARGV[3] .. redis.call('LINDEX', KEYS[1], place), 'priority') or 0) >= priority
end
if priority ~= 0 then redis.call('HSET', KEYS[2], 'priority', priority) end
local last = redis.call('LLEN', KEYS[1]) - 1
if last < 1 or redis.call('LINDEX', KEYS[1], last) ~= ARGV[1] or at_least(last - 1) then return end
local low, high = 0, last - 1
while low < high do
  local middle = math.floor((low + high) / 2)
  if at_least(middle) then low = middle + 1 else high = middle end
end
local before = redis.call('LINDEX', KEYS[1], low)
redis.call('RPOP', KEYS[1])
redis.call('LINSERT', KEYS[1], 'BEFORE', before, ARGV[1])
