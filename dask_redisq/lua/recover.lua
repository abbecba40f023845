-- Look after the dead: workers without a beat lose their leases, jobs without a client end.
-- keys: workers alive worker_slots slots slot control monitor jobs job client leases ready sets delayed settle parked
-- args: who interval
-- returns: msgpack {looked (0 or 1), workers found dead, jobs ended and not yet removed, jobs to rebuild}
--@include full
--@include leases
--@include ending
--@include damage
--@include stuck
--@include retry
--
-- One look per interval for the whole queue, under a lock that expires: a lock that a dead
-- monitor holds for ever was the end of recovery elsewhere. It starts from the authoritative
-- registrations, never from an index. A vanished host charges nobody for its deaths.
write_when_full()
if not redis.call('SET', key.monitor(), arg.who, 'NX', 'PX', arg.interval) then
  return cmsgpack.pack({0, {}, {}, {}})
end
local dead, ended, damaged, tokens = {}, {}, {}, 0
for _, worker in ipairs(redis.call('HKEYS', key.workers())) do
  if redis.call('EXISTS', key.alive(worker)) == 0 and #dead < 20 then
    for _, slot in ipairs(redis.call('SMEMBERS', key.worker_slots(worker))) do
      tokens = tokens + unregister(slot, function() return true end)
    end
    redis.call('HDEL', key.workers(), worker)
    redis.call('DEL', key.worker_slots(worker), key.control(worker))
    dead[#dead + 1] = worker
  end
end
pass_on(tokens)
-- A hundred jobs a look; where it begins moves on with the clock, so that each has its turn.
local jobs = math.max(1, redis.call('ZCARD', key.jobs()))
local first = math.floor(now_ms() / tonumber(arg.interval)) * 100 % jobs
for _, job in ipairs(redis.call('ZRANGE', key.jobs(), first, first + 99)) do
  local state = redis.call('HGET', key.job(job), 'state')
  if redis.call('EXISTS', key.client(job)) == 0 then
    if state == 'running' then
      end_job(job, 'cancelled', cmsgpack.pack({'client', -1, '', ''}))
    end
    ended[#ended + 1] = job
  elseif is_damaged(job) then
    damaged[#damaged + 1] = job
  elseif state == 'running' then
    release_due(job) -- a slot was told when to look, and it may be gone
  end
end
return cmsgpack.pack({1, dead, ended, damaged})
