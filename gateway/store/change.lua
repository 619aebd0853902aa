-- One change, all of it or nothing.
-- KEYS: generation, changes, gone, and the hash of each kind
-- ARGV: the kinds, generation, nonce, cap of changes, cap of gone,
--       then verb, kind, name, expected revision or '', data of each line
-- Gives {'empty'}, {'broken'}, {'conflict', kind, name, revision} or {'ok', revision}
local num_kinds = #KEYS - 3
local store = {}
for i = 1, num_kinds do store[ARGV[i]] = KEYS[3 + i] end
local known, nonce = ARGV[num_kinds + 1], ARGV[num_kinds + 2]
local max_changes, max_gone = ARGV[num_kinds + 3], tonumber(ARGV[num_kinds + 4])

local generation = redis.call('GET', KEYS[1])
if not generation then return {'empty'} end
if generation ~= known then return {'broken'} end

for i = num_kinds + 5, #ARGV, 5 do
  local kind, name, expected = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if expected ~= '' then
    local document = redis.call('HGET', store[kind], name)
    local revision = document and string.match(document, '^%d+') or '0'
    if revision ~= expected then return {'conflict', kind, name, revision} end
  end
end

local time = redis.call('TIME')
local revision = time[1] * 1000000 + time[2]
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if last[1] then revision = math.max(revision, tonumber(string.match(last[1][1], '^%d+')) + 1) end
revision = string.format('%.0f', revision)

local fields = {}
for i = num_kinds + 5, #ARGV, 5 do
  local verb, kind, name, data = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4]
  if verb == 'put' then
    redis.call('HSET', store[kind], name, revision .. ' ' .. data)
  elseif verb == 'remove' then
    redis.call('HDEL', store[kind], name)
    redis.call('ZADD', KEYS[3], revision, kind .. ' ' .. name)
  end
  if verb ~= 'guard' then
    fields[#fields + 1] = kind
    fields[#fields + 1] = name
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -max_gone - 1)
if #fields > 0 then
  redis.call('XADD', KEYS[2], 'MAXLEN', max_changes, revision .. '-' .. nonce, unpack(fields))
end
return {'ok', revision}
