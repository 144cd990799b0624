#!lua flags=allow-oom
-- Charges flows with what their batches owe by now, each token once: what was charged to a batch before is told apart.
-- KEYS: times by flow, floors by priority, bills by batch. ARGV: number of floors, then priority and floor of each,
-- then per bill: batch, flow, priority, weight, tokens owed since the batch began, where it started among its tenant's.
local function raised(key, field, least)
  local value = tonumber(redis.call('HGET', key, field) or least)
  return value > least and value or least
end
local first = 2 + 2 * tonumber(ARGV[1])
for i = 2, first - 1, 2 do
  local floor = raised(KEYS[2], ARGV[i], tonumber(ARGV[i + 1]))
  redis.call('HSET', KEYS[2], ARGV[i], string.format('%.17g', floor))
end
for i = first, #ARGV, 6 do
  local batch, flow, owed, charged, start = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4]), 0, ARGV[i + 5]
  local bill = redis.call('HGET', KEYS[3], batch)
  if bill then charged, start = string.match(bill, '^(%S+) (%S+)$') end
  local more = owed - tonumber(charged)
  if more ~= 0 then
    local floor = tonumber(redis.call('HGET', KEYS[2], ARGV[i + 2]) or 0)
    local time = tonumber(redis.call('HGET', KEYS[1], flow) or floor)
    if more > 0 and time < floor then time = floor end
    redis.call('HSET', KEYS[1], flow, string.format('%.17g', time + more / tonumber(ARGV[i + 3])))
    redis.call('HSET', KEYS[3], batch, string.format('%.17g', owed) .. ' ' .. start)
  end
end
