-- What changed since a position of the stream, and how many documents there are.
-- KEYS: generation, changes, gone, and the hash of each kind
-- ARGV: the kinds, generation, position, the most documents to tell of
-- Gives {'empty'}, {'broken'} when the position leads nowhere, or
-- {'ok', position, {count of each kind}, {kind, name, document or '', revision of removal or ''}...}
local num_kinds = #KEYS - 3
local store = {}
for i = 1, num_kinds do store[ARGV[i]] = KEYS[3 + i] end
local known, position, limit = ARGV[num_kinds + 1], ARGV[num_kinds + 2], tonumber(ARGV[num_kinds + 3])

local generation = redis.call('GET', KEYS[1])
if not generation then return {'empty'} end
if generation ~= known then return {'broken'} end
if #redis.call('XRANGE', KEYS[2], position, position) == 0 then return {'broken'} end

local touched, order = {}, {}
for _, change in ipairs(redis.call('XRANGE', KEYS[2], '(' .. position, '+')) do
  position = change[1]
  for i = 1, #change[2], 2 do
    local kind, name = change[2][i], change[2][i + 1]
    local member = kind .. ' ' .. name
    if store[kind] and not touched[member] then
      touched[member] = true
      order[#order + 1] = {kind, name, member}
    end
  end
  if #order > limit then return {'broken'} end
end

local counts = {}
for i = 1, num_kinds do counts[i] = redis.call('HLEN', KEYS[3 + i]) end
local reply = {'ok', position, counts}
for _, entry in ipairs(order) do
  local document = redis.call('HGET', store[entry[1]], entry[2])
  local gone = redis.call('ZSCORE', KEYS[3], entry[3])
  reply[#reply + 1] = {entry[1], entry[2], document or '', gone or ''}
end
return reply
