#!lua
-- Validation is over: its shards become the batch's, and lines may run unless the batch is being wound up already.
-- KEYS: batch, shards, waiting, sealed, shards as drafted, waiting as drafted.
-- ARGV: now, number of lines, number of shards, model, '1' if the shards are those of an arranged copy, estimated tokens,
-- lines in a shard on average, generation; and where results of an earlier generation are kept: the shard that holds
-- them, which is sealed, its sizes, or '' if there is none, lines completed, failed and not run, number of kinds of
-- errors, then name and value of their counters.
-- A second validation of the same generation, or one that comes after its end, changes nothing.
local batch = redis.call('HMGET', KEYS[1], 'status', 'generation')
local status = batch[1]
local open = status == 'validating' or status == 'cancelling' or status == 'finalizing'
if not open or (batch[2] or '0') ~= ARGV[8] or redis.call('HSETNX', KEYS[1], 'validated', '1') == 0 then
  redis.call('DEL', KEYS[5], KEYS[6])
  return false
end
redis.call('RENAME', KEYS[5], KEYS[2])
redis.call('RENAME', KEYS[6], KEYS[3])
redis.call('PERSIST', KEYS[2])
redis.call('PERSIST', KEYS[3])
redis.call('HSET', KEYS[1], 'total', ARGV[2], 'num_shards', ARGV[3], 'model', ARGV[4], 'arranged', ARGV[5],
  'estimated_tokens', ARGV[6], 'lines_per_shard', ARGV[7])
if ARGV[9] then
  if ARGV[10] ~= '' then redis.call('HSET', KEYS[4], ARGV[9], ARGV[10]) end
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.find(name, 'error:', 1, true) == 1 or string.find(name, 'first-error:', 1, true) == 1 then
      redis.call('HDEL', KEYS[1], name)
    end
  end
  redis.call('HSET', KEYS[1], 'completed', ARGV[11], 'failed', ARGV[12], 'unrun', ARGV[13], 'error_kinds', ARGV[14])
  for i = 15, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if status == 'validating' then
  redis.call('HSET', KEYS[1], 'status', 'in_progress', 'in_progress_at', ARGV[1])
end
return status
