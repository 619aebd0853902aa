-- One gateway's news about one tenant, applied once; after windows.lua.
--   KEYS[4]  the last sequence number that this gateway has sent
--   ARGV     now (ms, '' = this server's), lease (ms), sequence, the epoch that the sender knows
--            ('' = none), an epoch for a new state, news (msgpack)
--   news     {charges, renewals, settlements}
--     charge      {second, requests, input, output}
--     renewal     {id, second, input, output, and if the flight is not known: requests, input, output}
--     settlement  {id, second, final requests, input, output, and if not known: the changes}
--   gives {is applied, now, requests, input, output, in flight, spent, epoch}; not applied: the
--         state is not the one the sender knows
local now = clock(ARGV[1])
local lease, sequence, known = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local state = open(now, ARGV[5])

local function answer(is_applied)
  local used = state.used
  local in_flight = redis.call('ZCARD', KEYS[2])
  return {is_applied, now, used[1], used[2], used[3], in_flight, state.spent, state.epoch}
end

if known ~= '' and known ~= state.epoch then
  save(state)
  return answer(0)
end
if sequence > (tonumber(redis.call('GET', KEYS[4])) or 0) then
  local news = cmsgpack.unpack(ARGV[6])
  for _, item in ipairs(news[1]) do charge(state, item[1], item[2], item[3], item[4]) end
  for _, item in ipairs(news[2]) do
    if redis.call('ZADD', KEYS[2], now + lease, item[1]) == 1 then
      local second, _, output = reserve(item[1])
      if second then
        charge(state, second, 0, 0, item[4] - output)
      else
        charge(state, item[2], item[5], item[6], item[7])
      end
      hold(item[1], second or item[2], item[3], item[4])
    end
  end
  for _, item in ipairs(news[3]) do
    local second, input, output = reserve(item[1])
    if second then
      charge(state, second, item[3] - 1, item[4] - input, item[5] - output)
      release(item[1])
    else
      charge(state, item[2], item[6], item[7], item[8])
    end
  end
  redis.call('SET', KEYS[4], sequence, 'EX', KEEP)
end
reap(state, now)
save(state)
return answer(1)
