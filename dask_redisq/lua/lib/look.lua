-- Look after something at most once per interval, whoever looks.
-- keys: monitor workers jobs
--@include clock
--@include life
--
-- The time of the last look is kept, and who looks has an interval of his own. Under a lock that
-- lives as long as the interval of who took it, one with 5 s would keep off those with 1 s, who
-- promised as much; a lock that a dead monitor held for ever was the end of recovery elsewhere.

-- Tell whether somebody ran `check` less than `interval` ms ago, or there is nothing to look at; if
-- not, `who` does now. A worker of two queues looks after one that was just removed: nothing is made.
local function looked_lately(check, who, interval)
  if redis.call('EXISTS', key.workers(), key.jobs()) == 0 then return true end
  local last = string.match(redis.call('HGET', key.monitor(), check) or '', '^%d+')
  local ago = now_ms() - tonumber(last or 0)
  if ago >= 0 and ago < tonumber(interval) then return true end
  redis.call('HSET', key.monitor(), check, string.format('%d %s', now_ms(), who))
  redis.call('PEXPIRE', key.monitor(), DAY)
  return false
end
