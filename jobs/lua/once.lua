-- Opens a request under its idempotency key. KEYS: record. ARGV: what it asks, a new id, owner, seconds of the lease, and
-- of the record. Returns {state, id}: 'first' (create it under this id), 'again' (someone began and has not ended: look
-- whether it is there, else create it), 'done', 'busy' (someone is at it), 'other' (the key stands for another request).
local record = redis.call('HMGET', KEYS[1], 'request', 'id', 'until', 'done')
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local id = record[2] or ARGV[2]
if record[1] and record[1] ~= ARGV[1] then return {'other', ''} end
if record[4] then return {'done', id} end
if record[3] and tonumber(record[3]) > now then return {'busy', ''} end
redis.call('HSET', KEYS[1], 'request', ARGV[1], 'id', id, 'owner', ARGV[3], 'until', string.format('%.6f', now + ARGV[4]))
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {record[1] and 'again' or 'first', id}
