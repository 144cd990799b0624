#!lua flags=allow-oom
-- Ends a batch with its files, which clients see from then on. Whoever comes second changes nothing, and has to delete
-- what it has written itself.
-- KEYS: batch, its tenant's list of files, sequence, files by expiry, bytes stored by its tenant, then each file.
-- ARGV: to, now, comma-joined allowed origins, the generation that is meant, number of fields and values of the batch,
-- field, value..., then of each file: id, bytes, expires_at or '', number of its fields and values, field, value...
-- Returns the status the batch had before; where that is no allowed origin, or '', it stayed as it was.
local batch = redis.call('HMGET', KEYS[1], 'status', 'generation')
local status = batch[1]
if not status then return false end
if not string.find(',' .. ARGV[3] .. ',', ',' .. status .. ',', 1, true) then return status end
if ARGV[4] ~= (batch[2] or '0') then return '' end
local at = 6 + ARGV[5]
redis.call('HSET', KEYS[1], 'status', ARGV[1], ARGV[1] .. '_at', ARGV[2], unpack(ARGV, 6, at - 1))
for i = 6, #KEYS do
  local id, bytes, expires_at, fields = ARGV[at], ARGV[at + 1], ARGV[at + 2], at + 4
  at = fields + ARGV[at + 3]
  -- An earlier version may have written it down before the batch ended.
  local was = tonumber(redis.call('HGET', KEYS[5], id)) or 0
  redis.call('HSET', KEYS[i], unpack(ARGV, fields, at - 1))
  redis.call('HSET', KEYS[5], id, bytes)
  redis.call('HINCRBY', KEYS[5], 'total', string.format('%.0f', bytes - was))
  if expires_at ~= '' then redis.call('ZADD', KEYS[4], expires_at, id) end
  if not redis.call('ZSCORE', KEYS[2], id) then
    redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), id)
  end
end
return status
