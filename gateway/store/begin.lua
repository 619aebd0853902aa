-- Where a full reading begins; makes the store where Redis has none.
-- KEYS: generation, changes, gone
-- ARGV: the generation to give it, nonce, a revision to begin above, a margin over the clock
-- Gives {generation, position, {member, revision, member, revision...} of gone}
local generation = redis.call('GET', KEYS[1])
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if not generation or not last[1] then
  generation = generation or ARGV[1]
  redis.call('SET', KEYS[1], generation)
  local time = redis.call('TIME')
  local first = math.max(tonumber(ARGV[3]) + 1, time[1] * 1000000 + time[2] + tonumber(ARGV[4]))
  if last[1] then first = math.max(first, tonumber(string.match(last[1][1], '^%d+')) + 1) end
  local id = string.format('%.0f', first) .. '-' .. ARGV[2]
  redis.call('XADD', KEYS[2], id, 'generation', generation)
  last = {{id}}
end
return {generation, last[1][1], redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')}
