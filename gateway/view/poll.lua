-- One look at the fleet, which also tells how this gateway stands.
-- KEYS: replicas, beats, gateways, gateway_beats
-- ARGV: gateway id, its report, milliseconds after which what is silent is dropped
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local oldest = '(' .. (now - ARGV[3])
for first = 1, 3, 2 do
  local silent = redis.call('ZRANGEBYSCORE', KEYS[first + 1], '-inf', oldest, 'LIMIT', 0, 100)
  if #silent > 0 then
    redis.call('HDEL', KEYS[first], unpack(silent))
    redis.call('ZREM', KEYS[first + 1], unpack(silent))
  end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[4], now, ARGV[1])
return {
  tostring(now),
  redis.call('HGETALL', KEYS[1]),
  redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'),
  redis.call('HGETALL', KEYS[3]),
  redis.call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES'),
}
