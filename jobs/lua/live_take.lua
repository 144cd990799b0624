#!lua
-- Gives a worker the requests at the head of the line. Asked again under the same number it gives the same again, because
-- the first answer may be lost. KEYS: line, what this worker took last.
-- ARGV: worker, number of this taking, most, what the keys of requests begin with. Returns calls.
local last = redis.call('HMGET', KEYS[2], 'number', 'ids')
local ids = {}
if last[1] == ARGV[2] then
  ids = cjson.decode(last[2])
else
  while #ids < tonumber(ARGV[3]) do
    local id = redis.call('LPOP', KEYS[1])
    if not id then break end
    local request = redis.call('HMGET', ARGV[4] .. id, 'call', 'worker')
    -- One whose client has gone is not there any more; one that stands in line twice has been taken.
    if request[1] and not request[2] then
      redis.call('HSET', ARGV[4] .. id, 'worker', ARGV[1])
      ids[#ids + 1] = id
    end
  end
  redis.call('HSET', KEYS[2], 'number', ARGV[2], 'ids', #ids > 0 and cjson.encode(ids) or '[]')
  redis.call('EXPIRE', KEYS[2], 60)
end
local calls = {}
for _, id in ipairs(ids) do
  local call = redis.call('HGET', ARGV[4] .. id, 'call')
  if call then calls[#calls + 1] = call end
end
return calls
