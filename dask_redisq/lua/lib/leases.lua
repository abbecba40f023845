-- Give leases back: what a slot held and did not finish becomes ready again.
-- keys: job leases alone parked slot slots worker_slots idle wake ready tagged sets control active
--@include ready
--@include events

-- Return the tasks of a slot's lease to the ready sets and forget the lease.
--
-- `done`: tasks that were accepted; `begun`: a function telling which of the rest may have run.
-- Those run alone from now on: no continuation, value published, so the right one is blamed for
-- a death, and {A, B} cannot come back for ever with a B that is finished already. `packed`: the lease, if
-- that was read.
local function end_lease(job, slot, done, begun, packed)
  packed = packed or redis.call('HGET', key.leases(job), slot)
  if not packed then return end
  redis.call('HDEL', key.leases(job), slot)
  local left, parks = {}, nil
  for i, task in ipairs(cmsgpack.unpack(packed)[2]) do
    if not done[task] then
      if parks == nil then parks = redis.call('EXISTS', key.parked(job)) == 1 end
      if not (parks and redis.call('SISMEMBER', key.parked(job), task) == 1) then
        left[#left + 1] = task
      end
      if begun(task, i) then
        redis.call('SADD', key.alone(job), task)
        redis.call('PEXPIRE', key.alone(job), life_of(job))
      end
    end
  end
  if #left > 0 and redis.call('HGET', key.job(job), 'state') == 'running' then make_ready(job, left, '') end
end

-- Forget a slot: its lease goes back, its ready set becomes everyone's.
--
-- `kept`: tasks that do not become ready with the rest. Returns how many tokens to pass on, once for all slots that are gone: those that it had, or
-- one that may have been in its hand.
local function unregister(slot, begun, kept)
  if redis.call('SREM', key.slots(), slot) == 0 then return 0 end
  local state = redis.call('HMGET', key.slot(slot), 'worker', 'job')
  leave_idle(slot)
  local tokens = redis.call('LLEN', key.wake(slot))
  for _, job in ipairs(redis.call('ZRANGE', key.active(), 0, -1)) do
    local held = redis.call('ZRANGE', key.tagged(job, slot), 0, -1)
    if #held > 0 then
      redis.call('DEL', key.tagged(job, slot))
      redis.call('ZREM', key.sets(job), slot)
      make_ready(job, held, '')
    end
  end
  if state[2] then
    local packed = redis.call('HEXISTS', key.job(state[2]), 'watched') == 1 and redis.call('HGET', key.leases(state[2]), slot)
    if packed then note_event(state[2], slot, 'back', cmsgpack.unpack(packed)[2]) end
    end_lease(state[2], slot, kept or {}, begun)
  end
  redis.call('DEL', key.slot(slot), key.wake(slot))
  if state[1] then redis.call('SREM', key.worker_slots(state[1]), slot) end
  return math.max(tokens, 1)
end
