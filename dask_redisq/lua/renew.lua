-- Renew a worker's alive key, and compare what its slots hold with what they know of.
-- keys: workers alive worker_slots slots slot idle wake
-- args: worker expiry held
-- returns: 'ok', or 'unknown' when the worker, or one of its slots, is not registered
--@include full
--@include leases
--@include expire
--
-- It never re-creates a registration: that was removed for a reason. `held` = msgpack {slot, seq,
-- ...}: the lease that each slot has in hand. A server that came back older may hold lease 5 for
-- a slot that is at 9: nobody would look at lease 5 while that worker lives, so it goes back. Or it
-- may bring back a slot that died since; `held` has all that live.
if redis.call('HEXISTS', key.workers(), arg.worker) == 0 then return 'unknown' end
write_when_full()
redis.call('SET', key.alive(arg.worker), '1', 'PX', arg.expiry)
redis.call('PEXPIRE', key.worker_slots(arg.worker), DAY)
renew_queue()
local held, answer, live = cmsgpack.unpack(arg.held), 'ok', {}
for i = 1, #held, 2 do
  local slot, seq = held[i], held[i + 1]
  live[slot] = true
  local stored = redis.call('HMGET', key.slot(slot), 'seq', 'job')
  if not stored[1] or redis.call('SISMEMBER', key.slots(), slot) == 0 then
    answer = 'unknown'
  else
    redis.call('PEXPIRE', key.slot(slot), DAY)
    if stored[2] and seq > tonumber(stored[1]) then
      end_lease(stored[2], slot, {}, function() return true end)
      redis.call('HDEL', key.slot(slot), 'job', 'holds')
    end
  end
end
local tokens = 0
for _, slot in ipairs(redis.call('SMEMBERS', key.worker_slots(arg.worker))) do
  if not live[slot] then
    tokens = tokens + unregister(slot, function() return true end)
    redis.call('SREM', key.worker_slots(arg.worker), slot) -- its own hash may be lost, which says so
  end
end
pass_on(tokens)
return answer
