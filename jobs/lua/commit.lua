#!lua flags=allow-oom
-- Writes results of one shard, each line once, and counts exactly what it wrote.
-- KEYS: batch, owners, spool, attempts. ARGV: shard, owner, lines in the shard, most kinds of errors to tell apart,
-- then per line: index, outcome, input, cached, output, reasoning tokens, data, kind of error or '', its message.
-- Returns 'lost' (another owner: nothing written), 'ok' or 'complete' (every line of the shard is there).
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
local names = {'input_tokens', 'cached_tokens', 'output_tokens', 'reasoning_tokens'}
local counters = {s = 'completed', f = 'failed', u = 'unrun'}
local add, errors = {}, {}
for i = 5, #ARGV, 9 do
  local kind = ARGV[i + 1]
  if redis.call('HSETNX', KEYS[3], ARGV[i], kind .. ARGV[i + 6]) == 1 then
    local counter = counters[kind]
    add[counter] = (add[counter] or 0) + 1
    for j = 1, 4 do add[names[j]] = (add[names[j]] or 0) + tonumber(ARGV[i + 1 + j]) end
    if ARGV[i + 7] ~= '' then errors[#errors + 1] = i + 7 end
  end
end
for name, amount in pairs(add) do
  if amount ~= 0 then redis.call('HINCRBY', KEYS[1], name, string.format('%.0f', amount)) end
end
for _, i in ipairs(errors) do
  local name = 'error:' .. ARGV[i] .. ':'
  if redis.call('HEXISTS', KEYS[1], name) == 0 then
    -- What lines send decides how many kinds there are, so beyond a limit they are one.
    if tonumber(redis.call('HGET', KEYS[1], 'error_kinds') or 0) < tonumber(ARGV[4]) then
      redis.call('HINCRBY', KEYS[1], 'error_kinds', 1)
    else
      name = 'error:other:'
    end
    redis.call('HSETNX', KEYS[1], 'first-' .. name, ARGV[i + 1])
  end
  redis.call('HINCRBY', KEYS[1], name, 1)
end
if next(add) then redis.call('HDEL', KEYS[4], ARGV[1]) end
if redis.call('HLEN', KEYS[3]) == tonumber(ARGV[3]) then return 'complete' end
return 'ok'
