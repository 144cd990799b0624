#!lua
-- Opens an ended batch again, as its next generation. What the last one left in Redis goes; its files stay as they are.
-- KEYS: batch, active batches by deadline, batches by their next look, then what is kept of a batch's shards.
-- ARGV: id, generation that has ended, now, seconds of the window, ids of the new output and error file,
-- which lines are to run again.
-- Returns false if there is no such batch, '' if it was done, or the status that does not allow it.
local batch = redis.call('HMGET', KEYS[1], 'status', 'generation', 'input_tokens', 'output_tokens', 'closing')
local status = batch[1]
if not status then return false end
local ended = status == 'completed' or status == 'expired' or status == 'cancelled'
if not ended or (batch[2] or '0') ~= ARGV[2] then return status end
redis.call('DEL', unpack(KEYS, 4))
redis.call('HDEL', KEYS[1], 'validated', 'closing', 'in_progress_at', 'started_at', 'finalizing_at', 'completed_at',
  'expired_at', 'cancelling_at', 'cancelled_at', 'event_id')
local expires_at = string.format('%.0f', ARGV[3] + ARGV[4])
redis.call('HSET', KEYS[1], 'status', 'validating', 'generation', ARGV[2] + 1, 'reopened_at', ARGV[3],
  'expires_at', expires_at, 'reserved_output_id', ARGV[5], 'reserved_error_id', ARGV[6], 'retry', ARGV[7],
  'num_shards', 0, 'paused', 0, 'earlier_tokens', string.format('%.0f', batch[3] + batch[4]))
if batch[5] then redis.call('HSET', KEYS[1], 'closed_before', batch[5]) end
redis.call('ZADD', KEYS[2], expires_at, ARGV[1])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
return ''
