-- One gateway's totals of one tenant and day, as they stand: told late or twice, they change nothing.
--   KEYS[1]  hash: "writer:label" -> "requests input output cached"
--   ARGV     seconds to keep it, then field, value, field, value, ...
local function sum(text)
  local total = 0
  for number in string.gmatch(text or '', '%d+') do total = total + tonumber(number) end
  return total
end

for index = 2, #ARGV, 2 do
  local held = redis.call('HGET', KEYS[1], ARGV[index])
  if sum(ARGV[index + 1]) > sum(held or '') then
    redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
