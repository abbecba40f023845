-- End a job: one state, that every script looks at first; removal comes later, in slices.
-- keys: active job consts settle slot leases held holders children
--@include client
--@include control
--@include expire

local ORPHAN = 'the job whose task waited for it has ended'

-- Give a job its last state and tell its client and the supervisors of its running tasks.
--
-- A kept job that is done uses others no longer: else z = (z + 1).persist() in a loop would keep them all.
local function end_job(job, state, reason)
  redis.call('HSET', key.job(job), 'state', state, 'error', reason)
  if state == 'done' and redis.call('HEXISTS', key.job(job), 'kept') == 1 then
    for _, other in ipairs(redis.call('SMEMBERS', key.held(job))) do
      redis.call('SREM', key.holders(other), job)
    end
    redis.call('DEL', key.held(job))
  end
  redis.call('ZREM', key.active(), job)
  local leases = redis.call('HGETALL', key.leases(job))
  for i = 1, #leases, 2 do
    local worker = redis.call('HGET', key.slot(leases[i]), 'worker')
    if worker then tell_worker(worker, 'cancel', leases[i], job, cmsgpack.unpack(leases[i + 1])[1]) end
  end
  tell_client(job)
  -- What its tasks compute nobody waits for any more. They are killed in a second, and these jobs would go
  -- on until the lease of such a client is over.
  for _, child in ipairs(redis.call('SMEMBERS', key.children(job))) do
    if redis.call('HGET', key.job(child), 'state') == 'running' then
      end_job(child, 'cancelled', cmsgpack.pack({'cancelled', -1, ORPHAN, ''}))
    end
  end
  local ttl = tonumber(redis.call('HGET', key.job(job), 'ttl') or 0)
  if ttl > 0 then -- a detached job: from now on its results age
    redis.call('HSET', key.job(job), 'ended', now_ms())
    set_life(job, ttl + MARGIN)
    renew_all(job)
    redis.call('HSET', key.job(job), 'expiring', '1')
    -- Its constants keep the life that they were given. If nobody comes until then, who sweeps finds them.
    redis.call('PEXPIRE', key.consts(job), first_life(0, ttl))
  end
end

-- A job is done when it is sealed, every task is finished and no edge is left to count; not while
-- it is damaged: a finished task may have to run again. Returns whether it ended so.
local function end_if_done(job)
  local state = redis.call('HMGET', key.job(job), 'state', 'sealed', 'n', 'finished', 'damaged')
  if state[1] == 'running' and state[2] and state[3] == state[4] and not state[5]
      and redis.call('EXISTS', key.settle(job)) == 0 then
    end_job(job, 'done', '')
    return true
  end
  return false
end
