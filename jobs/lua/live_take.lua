#!lua
-- Gives a worker the requests whose turn it is: of the first priority, of the tenant that had the least for its weight, in
-- order of arrival. Asked again under the same number it gives the same again, because the first answer may be lost.
-- KEYS: those that go ahead of all, what this worker took last. ARGV: worker, number of this taking, most, what the keys
-- of the model begin with, seconds for which it is known who had what. Returns calls.
local prefix = ARGV[4]

-- A tenant's turn is over: it had what its request costs, and waits for its next turn or for none.
local function charge(priority, tenant, start, price)
  local turns, had, clock = prefix .. 'turns:' .. priority, prefix .. 'had:' .. priority, prefix .. 'clock:' .. priority
  local now = math.max(start, tonumber(redis.call('GET', clock) or 0))
  redis.call('SET', clock, string.format('%.6f', now), 'EX', ARGV[5])
  redis.call('ZREMRANGEBYSCORE', had, '-inf', now)
  if redis.call('EXISTS', prefix .. 'line:' .. priority .. ':' .. tenant) == 1 then
    redis.call('ZADD', turns, start + price, tenant)
  else
    redis.call('ZREM', turns, tenant)
    redis.call('ZADD', had, start + price, tenant)
  end
  redis.call('EXPIRE', had, ARGV[5])
end

local function leave(id, tenant)
  redis.call('ZREM', prefix .. 'waiting', id)
  redis.call('ZREM', prefix .. 'waiting:' .. tenant, id)
  if redis.call('EXISTS', prefix .. 'waiting:' .. tenant) == 0 then redis.call('ZREM', prefix .. 'tenants', tenant) end
end

-- The next id, and whether there may be another; no id where a tenant or a priority turned out to wait no more.
local function next_one()
  local ahead = redis.call('LPOP', KEYS[1])
  if ahead then return ahead, true end
  local priority = redis.call('ZRANGE', prefix .. 'priorities', 0, 0)[1]
  if not priority then return nil, false end
  local turn = redis.call('ZRANGE', prefix .. 'turns:' .. priority, 0, 0, 'WITHSCORES')
  if not turn[1] then
    redis.call('ZREM', prefix .. 'priorities', priority)
    return nil, true
  end
  local id = redis.call('LPOP', prefix .. 'line:' .. priority .. ':' .. turn[1])
  local request = id and redis.call('HMGET', prefix .. 'request:' .. id, 'price', 'worker') or {}
  -- One that is not there any more, or has been taken, costs nothing.
  charge(priority, turn[1], tonumber(turn[2]), request[2] and 0 or tonumber(request[1] or 0))
  if id then leave(id, turn[1]) end
  return id, true
end

local last = redis.call('HMGET', KEYS[2], 'number', 'ids')
local ids = {}
if last[1] == ARGV[2] then
  ids = cjson.decode(last[2])
else
  local more = true
  while more and #ids < tonumber(ARGV[3]) do
    local id
    id, more = next_one()
    local request = id and redis.call('HMGET', prefix .. 'request:' .. id, 'call', 'worker')
    -- One whose client has gone is not there any more; one that stands in line twice has been taken.
    if request and request[1] and not request[2] then
      redis.call('HSET', prefix .. 'request:' .. id, 'worker', ARGV[1])
      ids[#ids + 1] = id
    end
  end
  redis.call('HSET', KEYS[2], 'number', ARGV[2], 'ids', #ids > 0 and cjson.encode(ids) or '[]')
  redis.call('EXPIRE', KEYS[2], 60)
end
local calls = {}
for _, id in ipairs(ids) do
  local call = redis.call('HGET', prefix .. 'request:' .. id, 'call')
  if call then calls[#calls + 1] = call end
end
return calls
