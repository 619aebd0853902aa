-- Checks all limits, then takes all or nothing; after windows.lua.
--   ARGV  now (ms, '' = this server's), id, lease (ms), input, output, five limits ('' = none)
--   gives {refusing limit (0 = admitted), wait ms, now, second, requests, input, output, in flight,
--          spent, reset ms, epoch}
local now = clock(ARGV[1])
local id, lease = ARGV[2], tonumber(ARGV[3])
local want = {1, tonumber(ARGV[4]), tonumber(ARGV[5])}
local limits = {}
for k = 1, 5 do limits[k] = tonumber(ARGV[5 + k]) end
local refused, wait = 0, 0

local function refuse(k, ms)
  if ms > wait then refused, wait = k, ms end
end

-- Milliseconds until the oldest buckets that hold the excess have left the window.
local function wait_for(state, k, excess)
  local first = state.at - SPAN + 1
  local names = {}
  for second = first, state.at do names[#names + 1] = field(k, second) end
  for index, value in ipairs(redis.call('HMGET', KEYS[1], unpack(names))) do
    excess = excess - (tonumber(value) or 0)
    if excess <= 0 then return (first + index - 1 + SPAN) * 1000 - now end
  end
  return SPAN * 1000
end

local state = open(now, id)
reap(state, now)
local in_flight = redis.call('ZCARD', KEYS[2])
for k = 1, 3 do
  local limit = limits[k]
  if limit and want[k] > 0 then
    -- More than the whole limit can only be had from an empty window.
    local excess = state.used[k] + math.min(want[k], math.max(limit, 1)) - limit
    if excess > 0 then refuse(k, wait_for(state, k, excess)) end
  end
end
if limits[4] and in_flight >= limits[4] then refuse(4, 1000) end
if limits[5] and state.spent >= limits[5] then refuse(5, DAY * 1000 - now % (DAY * 1000)) end
if refused == 0 then
  charge(state, state.at, want[1], want[2], want[3])
  hold(id, state.at, want[2], want[3])
  redis.call('ZADD', KEYS[2], now + lease, id)
  state.last = state.at
  in_flight = in_flight + 1
end
save(state)
local reset = math.max(0, (state.last + SPAN) * 1000 - now)
return {refused, wait, now, state.at, state.used[1], state.used[2], state.used[3], in_flight,
  state.spent, reset, state.epoch}
