-- Takes deliveries that are due; nobody else takes them before `until`. KEYS: deliveries by due time.
-- ARGV: now, until, most of them. Returns their ids.
local taken = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, id in ipairs(taken) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return taken
