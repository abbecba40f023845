-- Look after something at most once per interval, whoever looks.
-- keys: monitor audit
--@include ready
--
-- The time of the last look is kept, and who looks has an interval of his own. Under a lock that
-- lives as long as the interval of who took it, one with 5 s would keep off those with 1 s, who
-- promised as much; a lock that a dead monitor held for ever was the end of recovery elsewhere.
local LONGEST = 60 * 1000

-- Tell whether somebody looked less than `interval` ms ago; if not, `who` looks now.
-- What is looked after for the first time is taken for seen if `fresh`.
local function looked_lately(name, who, interval, fresh)
  local last = string.match(redis.call('GETRANGE', name, 0, -1), '^%d+')
  local ago = now_ms() - tonumber(last or fresh and now_ms() or 0)
  local lately = ago < tonumber(interval) and ago >= 0
  if not lately or not last then
    redis.call('SET', name, string.format('%d %s', now_ms(), who), 'PX', LONGEST)
  end
  return lately
end
