-- Validation is over: its shards become the batch's, and lines may run unless the batch is being wound up already.
-- KEYS: batch, shards, waiting, shards as drafted, waiting as drafted.
-- ARGV: now, number of lines, number of shards, model, '1' if the shards are those of an arranged copy, estimated tokens.
-- A second validation of the same batch, or one that comes after its end, changes nothing.
local status = redis.call('HGET', KEYS[1], 'status')
local open = status == 'validating' or status == 'cancelling' or status == 'finalizing'
if not open or redis.call('HSETNX', KEYS[1], 'validated', '1') == 0 then
  redis.call('DEL', KEYS[4], KEYS[5])
  return false
end
redis.call('RENAME', KEYS[4], KEYS[2])
redis.call('RENAME', KEYS[5], KEYS[3])
redis.call('PERSIST', KEYS[2])
redis.call('PERSIST', KEYS[3])
redis.call('HSET', KEYS[1], 'total', ARGV[2], 'num_shards', ARGV[3], 'model', ARGV[4], 'arranged', ARGV[5],
  'estimated_tokens', ARGV[6], 'lines_per_shard', tonumber(ARGV[2]) / tonumber(ARGV[3]))
if status == 'validating' then
  redis.call('HSET', KEYS[1], 'status', 'in_progress', 'in_progress_at', ARGV[1])
end
return status
