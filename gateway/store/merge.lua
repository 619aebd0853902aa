-- Takes what a gateway knows and is newer than what is here: after Redis lost something.
-- KEYS: generation, changes, gone, and the hash of each kind
-- ARGV: the kinds, generation, nonce, cap of changes, cap of gone,
--       then kind, name, revision, data ('' for a tombstone) of each entry
-- Gives {'empty'}, {'broken'} or {'ok', number of entries taken}
local num_kinds = #KEYS - 3
local store = {}
for i = 1, num_kinds do store[ARGV[i]] = KEYS[3 + i] end
local known, nonce = ARGV[num_kinds + 1], ARGV[num_kinds + 2]
local max_changes, max_gone = ARGV[num_kinds + 3], tonumber(ARGV[num_kinds + 4])

local generation = redis.call('GET', KEYS[1])
if not generation then return {'empty'} end
if generation ~= known then return {'broken'} end

local time = redis.call('TIME')
local newest = time[1] * 1000000 + time[2]
local fields = {}
for i = num_kinds + 5, #ARGV, 4 do
  local kind, name, revision, data = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local member = kind .. ' ' .. name
  local document = redis.call('HGET', store[kind], name)
  local here = document and tonumber(string.match(document, '^%d+')) or 0
  local gone = tonumber(redis.call('ZSCORE', KEYS[3], member) or 0)
  if tonumber(revision) > math.max(here, gone) then
    if data ~= '' then
      redis.call('HSET', store[kind], name, revision .. ' ' .. data)
    else
      redis.call('HDEL', store[kind], name)
      redis.call('ZADD', KEYS[3], revision, member)
    end
    newest = math.max(newest, tonumber(revision))
    fields[#fields + 1] = kind
    fields[#fields + 1] = name
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -max_gone - 1)
if #fields > 0 then
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
  if last[1] then newest = math.max(newest, tonumber(string.match(last[1][1], '^%d+')) + 1) end
  local id = string.format('%.0f', newest) .. '-' .. nonce
  redis.call('XADD', KEYS[2], 'MAXLEN', max_changes, id, unpack(fields))
end
return {'ok', #fields / 2}
