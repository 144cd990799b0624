-- Notes what a batch or job holds of its tenant's limits, if there is room beside what the others hold. The tokens that
-- it held before are replaced, so that to take twice is to take once.
-- KEYS: limits of all tenants, held by this tenant. ARGV: batch, kind, now, tokens, the limit's field, what it limits.
-- Returns false, or {limit, held by others} where there is no room.
-- A batch that is created again may have been read already: what it holds stays.
if ARGV[6] == 'batches' and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return false end
local limit = tonumber(redis.call('HGET', KEYS[1], ARGV[5]))
if limit then
  local held, more = 0, 1
  if ARGV[6] == 'tokens' then more = tonumber(ARGV[4]) end
  local all = redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local kind, tokens = string.match(all[i + 1], '^(%a+):(%d+):')
    if all[i] ~= ARGV[1] then
      if ARGV[6] == 'tokens' then held = held + tokens
      elseif kind == ARGV[2] then held = held + 1 end
    end
  end
  if held + more > limit then return {string.format('%.0f', limit), string.format('%.0f', held)} end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ':' .. ARGV[4] .. ':' .. ARGV[3])
return false
