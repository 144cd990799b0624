#!lua flags=allow-oom
-- Moves a batch to another status if it may. KEYS: batch.
-- ARGV: to, now, comma-joined allowed origins, the generation that is meant or '', field, value...
-- Returns the status the batch had before; a refused move leaves it as it was.
local batch = redis.call('HMGET', KEYS[1], 'status', 'generation')
local status = batch[1]
if not status then return false end
if not string.find(',' .. ARGV[3] .. ',', ',' .. status .. ',', 1, true) then return status end
if ARGV[4] ~= '' and ARGV[4] ~= (batch[2] or '0') then return '' end
redis.call('HSET', KEYS[1], 'status', ARGV[1], ARGV[1] .. '_at', ARGV[2])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return status
