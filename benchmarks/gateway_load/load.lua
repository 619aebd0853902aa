-- wrk's part: chat requests of several tenants, each prompt another one.
--   args: path, API keys (comma-separated), bytes of a prompt, "plain" | "stream" | "hold",
--         mean pause of a connection in ms, number of the first prompt
local words = "the quick brown fox jumps over the lazy dog and runs away from it all again "
local keys, heads, tail = {}, {}, ""
local path, pause, number = "", 0, 0
local num_threads = 0

function setup(thread)
  thread:set("thread_number", num_threads)
  num_threads = num_threads + 1
end

local function filler(bytes)
  return string.rep(words, math.ceil(bytes / #words)):sub(1, bytes)
end

function init(args)
  path, pause = args[1], tonumber(args[5])
  number = tonumber(args[6]) + thread_number * 1000000000
  for key in args[2]:gmatch("[^,]+") do keys[#keys + 1] = key end
  local kind = args[4]
  local options = kind == "plain" and "" or '"stream":true,'
  if kind == "hold" then options = options .. '"user":"hold",' end
  local half = math.floor(tonumber(args[3]) / 2)
  for index = 1, #keys do
    heads[index] = '{"model":"mock",' .. options .. '"max_tokens":32,"messages":[' ..
      '{"role":"system","content":"You serve tenant ' .. index .. ". " .. filler(half) .. '"},' ..
      '{"role":"user","content":"Question '
  end
  tail = ": " .. filler(half) .. '"}]}'
  math.randomseed(number + 7)
  if pause == 0 then delay = nil end
end

function request()
  number = number + 1
  local index = number % #keys + 1
  local headers = {["content-type"] = "application/json", authorization = "Bearer " .. keys[index]}
  return wrk.format("POST", path, headers, heads[index] .. number .. tail)
end

function delay()
  return math.random(0, 2 * pause)
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
  io.write(string.format(
    '\n{"num_requests":%d,"num_failed":%d,"seconds":%.6f,"p50_ms":%.3f,"p90_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f}\n',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
