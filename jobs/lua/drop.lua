#!lua flags=allow-oom
-- An ended batch needs neither shards nor care any more, unless it has been opened again.
-- KEYS: batch, active batches, batches by their next look, ends by kind and status, then what is kept of its shards.
-- ARGV: id, generation, kind. Returns 'open', or 'first' to whoever comes first, who counts the end, and else 'again'.
local batch = redis.call('HMGET', KEYS[1], 'status', 'generation')
local open = {validating = true, in_progress = true, finalizing = true, cancelling = true}
if batch[1] and (open[batch[1]] or (batch[2] or '0') ~= ARGV[2]) then return 'open' end
redis.call('DEL', unpack(KEYS, 5))
local is_first = redis.call('ZREM', KEYS[2], ARGV[1]) == 1
redis.call('ZREM', KEYS[3], ARGV[1])
if not is_first then return 'again' end
if batch[1] then redis.call('HINCRBY', KEYS[4], ARGV[3] .. ':' .. batch[1], 1) end
return 'first'
