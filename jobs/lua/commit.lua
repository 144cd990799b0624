#!lua flags=allow-oom
-- Writes results of one shard, each line once, and counts exactly what it wrote.
-- KEYS: batch, owners, spool, attempts. ARGV: shard, owner, lines in the shard, most kinds of errors to tell apart, how
-- many lines there are here, then for each line its index and its data behind the letter of its outcome, for each line
-- its input, cached, output and reasoning tokens with spaces between, and for each line that failed its place here, the
-- kind of its error and the message.
-- Returns 'lost' (another owner: nothing written), 'ok' or 'complete' (every line of the shard is there).
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'lost' end
local first, num_lines = 6, tonumber(ARGV[5])
local tokens = first + 2 * num_lines - 1
local errors = tokens + num_lines + 1
-- Most shards come whole, and are written at once; so many arguments fit Lua's stack.
local is_new, at_once, seen = {}, num_lines > 0 and num_lines <= 1000 and redis.call('EXISTS', KEYS[3]) == 0, {}
for i = 1, num_lines do
  local index = ARGV[first + 2 * i - 2]
  at_once, seen[index], is_new[i] = at_once and not seen[index], true, true
end
if at_once then
  redis.call('HSET', KEYS[3], unpack(ARGV, first, tokens))
else
  for i = 1, num_lines do
    local at = first + 2 * i - 2
    is_new[i] = redis.call('HSETNX', KEYS[3], ARGV[at], ARGV[at + 1]) == 1
  end
end
local names = {s = 'completed', f = 'failed', u = 'unrun'}
local add = {completed = 0, failed = 0, unrun = 0}
local input, cached, output, reasoning = 0, 0, 0, 0
for i = 1, num_lines do
  if is_new[i] then
    local name = names[string.sub(ARGV[first + 2 * i - 1], 1, 1)]
    add[name] = add[name] + 1
    local a, b, c, d = string.match(ARGV[tokens + i], '^(%S+) (%S+) (%S+) (%S+)$')
    input, cached, output, reasoning = input + a, cached + b, output + c, reasoning + d
  end
end
add.input_tokens, add.cached_tokens, add.output_tokens, add.reasoning_tokens = input, cached, output, reasoning
for name, amount in pairs(add) do
  if amount ~= 0 then redis.call('HINCRBY', KEYS[1], name, string.format('%.0f', amount)) end
end
for i = errors, #ARGV, 3 do
  if is_new[tonumber(ARGV[i])] then
    local name = 'error:' .. ARGV[i + 1] .. ':'
    if redis.call('HEXISTS', KEYS[1], name) == 0 then
      -- What lines send decides how many kinds there are, so beyond a limit they are one.
      if tonumber(redis.call('HGET', KEYS[1], 'error_kinds') or 0) < tonumber(ARGV[4]) then
        redis.call('HINCRBY', KEYS[1], 'error_kinds', 1)
      else
        name = 'error:other:'
      end
      redis.call('HSETNX', KEYS[1], 'first-' .. name, ARGV[i + 2])
    end
    redis.call('HINCRBY', KEYS[1], name, 1)
  end
end
if add.completed + add.failed + add.unrun > 0 then redis.call('HDEL', KEYS[4], ARGV[1]) end
if redis.call('HLEN', KEYS[3]) == tonumber(ARGV[3]) then return 'complete' end
return 'ok'
