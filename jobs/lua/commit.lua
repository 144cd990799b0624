#!lua flags=allow-oom
-- Writes results of one shard, each line once, and counts exactly what it wrote.
-- KEYS: batch, owners, spool, attempts. ARGV: shard, owner, lines in the shard,
-- then per line: index, outcome, input, cached, output, reasoning tokens, data.
-- Returns 'lost' (another owner: nothing written), 'ok' or 'complete' (every line of the shard is there).
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
local names = {'input_tokens', 'cached_tokens', 'output_tokens', 'reasoning_tokens'}
local counters = {s = 'completed', f = 'failed', u = 'unrun'}
local add = {}
for i = 4, #ARGV, 7 do
  local kind = ARGV[i + 1]
  if redis.call('HSETNX', KEYS[3], ARGV[i], kind .. ARGV[i + 6]) == 1 then
    local counter = counters[kind]
    add[counter] = (add[counter] or 0) + 1
    for j = 1, 4 do add[names[j]] = (add[names[j]] or 0) + tonumber(ARGV[i + 1 + j]) end
  end
end
for name, amount in pairs(add) do
  if amount ~= 0 then redis.call('HINCRBY', KEYS[1], name, string.format('%.0f', amount)) end
end
if next(add) then redis.call('HDEL', KEYS[4], ARGV[1]) end
if redis.call('HLEN', KEYS[3]) == tonumber(ARGV[3]) then return 'complete' end
return 'ok'
