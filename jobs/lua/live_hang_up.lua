#!lua flags=allow-oom
-- Takes a request out of the line, or has the worker that took it stop. KEYS: those that go ahead of all, request.
-- ARGV: id, its try, what the keys of the model begin with.
local prefix = ARGV[3]
local request = redis.call('HMGET', KEYS[2], 'worker', 'tenant', 'priority')
local worker, tenant = request[1], request[2]
redis.call('LREM', KEYS[1], 0, ARGV[1])
if tenant then
  redis.call('LREM', prefix .. 'line:' .. request[3] .. ':' .. tenant, 0, ARGV[1])
  redis.call('ZREM', prefix .. 'waiting', ARGV[1])
  redis.call('ZREM', prefix .. 'waiting:' .. tenant, ARGV[1])
  if redis.call('EXISTS', prefix .. 'waiting:' .. tenant) == 0 then redis.call('ZREM', prefix .. 'tenants', tenant) end
end
redis.call('DEL', KEYS[2])
if worker then
  redis.call('RPUSH', prefix .. 'stop:' .. worker, ARGV[1] .. ' ' .. ARGV[2])
  redis.call('EXPIRE', prefix .. 'stop:' .. worker, 60)
end
