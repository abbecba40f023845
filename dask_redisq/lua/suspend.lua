-- Give no further lease on a queue, or give them again and wake who sleeps.
-- keys: queue slots slot idle wake
-- args: on turn
-- returns: 'done', or 'late' when somebody suspended or resumed it after `turn`
--@include full
--@include ready
--@include expire
--
-- `turn`: how often that happened before, as the caller has seen it. A copy of a suspend that comes
-- after the resume would hold the queue, and nobody would know why.
--
-- Whoever idles is woken, not one for each ready task: some may be delayed, or for certain slots, and
-- who looked for them meanwhile was not told when to look again.
local meta = redis.call('HMGET', key.queue(), 'turns', 'suspended')
local since = tonumber(meta[1] or 0) - tonumber(arg.turn)
if since == 1 and (meta[2] and '1' or '0') == arg.on then return 'done' end -- a replay
if since ~= 0 then return 'late' end
write_when_full()
redis.call('HINCRBY', key.queue(), 'turns', 1)
if arg.on == '1' then
  redis.call('HSET', key.queue(), 'suspended', now_ms())
else
  redis.call('HDEL', key.queue(), 'suspended')
  for _, slot in ipairs(redis.call('SMEMBERS', key.slots())) do wake_slot(slot) end
end
renew_queue()
return 'done'
