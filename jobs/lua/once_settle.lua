-- Closes a request under its idempotency key, if it is still its owner's. KEYS: record. ARGV: owner, how it ended:
-- 'done', 'refused' (the key may be used again, for anything) or 'broken' (the next one goes on with the same id).
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return end
if ARGV[2] == 'done' then redis.call('HSET', KEYS[1], 'done', '1')
elseif ARGV[2] == 'refused' then redis.call('DEL', KEYS[1])
else redis.call('HSET', KEYS[1], 'until', '0') end
