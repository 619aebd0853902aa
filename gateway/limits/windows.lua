-- One tenant's state; windows.py says the same in Python, and a test compares them.
--   KEYS[1]  hash: epoch, at, last, spent, t1..t3 and buckets "k:slot", k = 1 requests, 2 input, 3 output
--   KEYS[2]  sorted set: flights by when they expire, ms
--   KEYS[3]  hash: what each flight reserves, "second input output"; until the day ends also what
--            is left of those that expired, should their gateway come back
local SPAN = 61       -- sixty whole seconds and the one that is not over yet
local DAY = 86400
local KEEP = 2 * DAY  -- seconds that an idle tenant's state is kept

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function field(k, second)
  return k .. ':' .. (second % SPAN)
end

local function fields(from, to)
  local names = {}
  for second = from, to do
    for k = 1, 3 do names[#names + 1] = field(k, second) end
  end
  return names
end

local function forget_expired()
  for _, id in ipairs(redis.call('HKEYS', KEYS[3])) do
    if not redis.call('ZSCORE', KEYS[2], id) then redis.call('HDEL', KEYS[3], id) end
  end
end

local function advance(state, second)
  local gap = second - state.at
  if gap < 0 and gap > -SPAN then return end  -- the clock went back a little: time stands still
  if gap ~= 0 and (gap < 0 or gap >= SPAN) then
    redis.call('HDEL', KEYS[1], unpack(fields(0, SPAN - 1)))
    state.used = {0, 0, 0}
  elseif gap > 0 then
    local names = fields(state.at + 1, second)
    for index, value in ipairs(redis.call('HMGET', KEYS[1], unpack(names))) do
      local k = (index - 1) % 3 + 1
      state.used[k] = state.used[k] - (tonumber(value) or 0)
    end
    redis.call('HDEL', KEYS[1], unpack(names))
  end
  if math.floor(second / DAY) ~= math.floor(state.at / DAY) then
    state.spent = 0
    forget_expired()
  end
  state.at = second
end

local function open(now, epoch)
  local second = math.floor(now / 1000)
  local held = redis.call('HMGET', KEYS[1], 'epoch', 'at', 'last', 'spent', 't1', 't2', 't3')
  if not held[1] then
    return {epoch = epoch, at = second, last = 0, spent = 0, used = {0, 0, 0}}
  end
  local state = {epoch = held[1], at = tonumber(held[2]), last = tonumber(held[3])}
  state.spent = tonumber(held[4])
  state.used = {tonumber(held[5]), tonumber(held[6]), tonumber(held[7])}
  advance(state, second)
  return state
end

local function save(state)
  redis.call('HSET', KEYS[1], 'epoch', state.epoch, 'at', state.at, 'last', state.last,
    'spent', state.spent, 't1', state.used[1], 't2', state.used[2], 't3', state.used[3])
  for index = 1, 3 do redis.call('EXPIRE', KEYS[index], KEEP) end
end

-- Adds to the bucket of a second, if the window still holds it, and to that day's budget.
local function charge(state, second, ...)
  second = math.min(second, state.at)
  local change = {...}
  if second > state.at - SPAN then
    local names = fields(second, second)
    local held = redis.call('HMGET', KEYS[1], unpack(names))
    for k = 1, 3 do
      if change[k] ~= 0 then
        local before = tonumber(held[k]) or 0
        local after = math.max(0, before + change[k])
        redis.call('HSET', KEYS[1], names[k], after)
        state.used[k] = state.used[k] + after - before
      end
    end
  end
  if math.floor(second / DAY) == math.floor(state.at / DAY) then
    state.spent = math.max(0, state.spent + change[2] + change[3])
  end
end

local function reserve(id)
  local held = redis.call('HGET', KEYS[3], id)
  if not held then return nil end
  local second, input, output = string.match(held, '(%d+) (%d+) (%d+)')
  return tonumber(second), tonumber(input), tonumber(output)
end

local function hold(id, second, input, output)
  redis.call('HSET', KEYS[3], id, string.format('%.0f %.0f %.0f', second, input, output))
end

local function release(id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
end

-- Flights that nobody renewed: their gateway is gone, what they would still have written is free.
local function reap(state, now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
    local second, input, output = reserve(id)
    if second then
      charge(state, second, 0, 0, -output)
      hold(id, second, input, 0)
    end
    redis.call('ZREM', KEYS[2], id)
  end
end
