-- Look after the dead: workers without a beat lose their leases, jobs without a client end.
-- keys: queue workers alive worker_slots slots slot control monitor jobs job client leases ready sets delayed settle parked tomb holders
-- args: who interval deadline
-- returns: msgpack {looked (0 or 1), workers found dead, jobs to remove, jobs to rebuild, jobs whose values are to be renewed}
--@include full
--@include look
--@include leases
--@include ending
--@include damage
--@include stuck
--@include tomb
--@include retry
--@include settle
--@include holders
--
-- One look per interval for the whole queue (lib/look.lua). It starts from the authoritative
-- registrations, never from an index. A vanished host charges nobody for its deaths.
--
-- A detached job needs its client until it is sealed: nobody else has the graph. After that it is
-- renewed here, since its tasks may wait or run for days, and goes when its results are too old.
-- A kept one without its client is renewed here while another job uses it.
--
-- Who looks found that all is well, and was stopped before it called, with its whole host: then the
-- beats of the others are missing too. So nothing is looked at when it is later than `deadline`, in ms.
local RENEW = 6 * 3600 * 1000 -- between two renewals of values, each of which lives for a day or more

-- Do what no step of the job may do any more: its last task has many inputs, nobody reads it, and
-- edges are left to count.
local function go_on(job)
  release_due(job)
  settle_some(job)
  end_if_done(job)
end

if now_ms() > tonumber(arg.deadline) then return cmsgpack.pack({0, {}, {}, {}, {}}) end
write_when_full()
if looked_lately('recovery', arg.who, arg.interval) then return cmsgpack.pack({0, {}, {}, {}, {}}) end
-- After an outage all alive keys are gone, and none of the workers is dead: each has, from the
-- first call to this run of the server on, the time that it asked for.
local run_at = tonumber(redis.call('HGET', key.queue(), 'run_at') or 0)
local function is_dead(worker)
  if redis.call('EXISTS', key.alive(worker)) == 1 then return false end
  -- What somebody else wrote there must not end all recovery.
  local read, info = pcall(cmsgpack.unpack, redis.call('HGET', key.workers(), worker))
  local expiry = read and type(info) == 'table' and tonumber(info.alive_expiry) or 0
  return now_ms() >= run_at + 1000 * expiry
end
local dead, ended, damaged, values, tokens = {}, {}, {}, {}, 0
for _, worker in ipairs(redis.call('HKEYS', key.workers())) do
  if #dead < 20 and is_dead(worker) then
    for _, slot in ipairs(redis.call('SMEMBERS', key.worker_slots(worker))) do
      tokens = tokens + unregister(slot, function() return true end)
    end
    redis.call('HDEL', key.workers(), worker)
    redis.call('DEL', key.worker_slots(worker), key.control(worker))
    dead[#dead + 1] = worker
  end
end
pass_on(tokens)
-- A hundred jobs a look; the next one goes on behind them, so that each has its turn.
local first, count = tonumber(redis.call('HGET', key.monitor(), 'next look') or 0), redis.call('ZCARD', key.jobs())
if first >= count then first = 0 end
local jobs = redis.call('ZRANGE', key.jobs(), first, first + 99)
redis.call('HSET', key.monitor(), 'next look', first + 100)
for _, job in ipairs(jobs) do
  local meta = redis.call('HMGET', key.job(job), 'state', 'ttl', 'sealed', 'ended', 'renewed', 'kept', 'life')
  local whole = meta[3] and meta[1] ~= 'cancelled'
  local kept = whole and tonumber(meta[2] or 0) > 0
  local used = whole and meta[6] and redis.call('EXISTS', key.client(job)) == 0 and is_held(job)
  if used or kept and meta[1] == 'running' then
    renew_all(job)
    if now_ms() - tonumber(meta[5] or 0) > math.min(RENEW, tonumber(meta[7]) / 4) then
      redis.call('HSET', key.job(job), 'renewed', now_ms())
      values[#values + 1] = job
    end
    if is_damaged(job) then
      damaged[#damaged + 1] = job
    elseif meta[1] == 'running' then
      go_on(job)
    end
  elseif kept and now_ms() >= tonumber(meta[4]) + tonumber(meta[2]) then
    bury(job, 'expired', '')
    ended[#ended + 1] = job
  elseif not kept and redis.call('EXISTS', key.client(job)) == 0 then
    if meta[1] == 'running' then
      local reason = cmsgpack.pack({'client', -1, '', ''})
      end_job(job, 'cancelled', reason)
      bury(job, 'cancelled', reason)
    end
    ended[#ended + 1] = job
  elseif is_damaged(job) then
    damaged[#damaged + 1] = job
  elseif meta[1] == 'running' then
    go_on(job) -- a slot was told when to look, and it may be gone
  end
end
return cmsgpack.pack({1, dead, ended, damaged, values})
