#!lua flags=allow-oom
-- Takes a request out of the line, or has the worker that took it stop. KEYS: line, request.
-- ARGV: id, its try, what the keys of workers' lists of requests to stop begin with.
redis.call('LREM', KEYS[1], 0, ARGV[1])
local worker = redis.call('HGET', KEYS[2], 'worker')
redis.call('DEL', KEYS[2])
if worker then
  redis.call('RPUSH', ARGV[3] .. worker, ARGV[1] .. ' ' .. ARGV[2])
  redis.call('EXPIRE', ARGV[3] .. worker, 60)
end
