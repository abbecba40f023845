-- The server's clock, which all scripts of a queue share.
-- keys:
--
-- Of one call it is one time: what it enters as due later is not due for itself.
local now

local function now_ms()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end
