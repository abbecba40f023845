-- Unregister a slot, or a whole worker: their leases go back, a death is charged to one task.
-- keys: workers alive worker_slots slots slot control leases job finished deaths alone places
-- args: worker slot seq begun position kind record retries
-- returns: 'ok'
--@include full
--@include leases
--@include ending
--@include numbers
--@include retry
--@include places
--
-- `slot` = '' unregisters the worker with all its slots. `begun` is the task that was running
-- (-1: none) in lease `seq`, `position` how far down the lease the slot was; what lies
-- behind is as good as new. `kind`: 'died', 'timeout' (the task ran too long, so its slot was
-- killed), or '' for an end that is nobody's fault; `record` = msgpack of how it was. Only the task
-- that was running is charged, at most once: the registration that this removes is what makes a
-- replay do nothing. `retries`: what that task was given itself, or -1.
--
-- A slot by its name is one that its supervisor waited for: what it held of locks is free, whoever may have
-- unregistered it before. Those of a whole worker, which others may only miss, stay until their expiry.
if arg.slot == '' then
  local tokens = 0
  for _, slot in ipairs(redis.call('SMEMBERS', key.worker_slots(arg.worker))) do
    tokens = tokens + unregister(slot, function() return true end)
  end
  pass_on(tokens)
  redis.call('HDEL', key.workers(), arg.worker)
  redis.call('DEL', key.alive(arg.worker), key.worker_slots(arg.worker), key.control(arg.worker))
  return 'ok'
end
if redis.call('EXISTS', key.places(arg.slot)) == 1 then
  write_when_full()
  free_places(arg.slot)
end
if redis.call('SISMEMBER', key.slots(), arg.slot) == 0 then return 'ok' end

-- Decide.
local stored = redis.call('HMGET', key.slot(arg.slot), 'seq', 'job')
local job, begun, position = stored[2], tonumber(arg.begun), tonumber(arg.position)
-- The slot died with a step under way: the lease here is not the one that it was running.
local known = tonumber(stored[1]) == tonumber(arg.seq)
local charged, leased = job and known and begun >= 0 and arg.kind ~= '', false
if charged then
  local packed = redis.call('HGET', key.leases(job), arg.slot)
  local lease = packed and cmsgpack.unpack(packed) or {0, {}}
  for _, task in ipairs(lease[2]) do leased = leased or task == begun end
  for _, task in ipairs(lease[3] or {}) do charged = charged and task ~= begun end -- it was given back
  if redis.call('HGET', key.job(job), 'state') ~= 'running' then charged = false end
  if read_bits(key.finished(job), {begun})[begun] then charged = false end -- others did it meanwhile
end
local try = charged and arg.kind == 'timeout' and count_try(job, begun, tonumber(arg.retries))
local records
if charged and arg.kind == 'died' then
  local packed = redis.call('HGET', key.deaths(job), begun)
  records = packed and cmsgpack.unpack(packed) or {}
  records[#records + 1] = arg.record
end

-- Write.
write_when_full()
local delayed = try and try.again and leased and try.delay > 0
if try and try.again then write_try(job, try) end
local kept = delayed and {[begun] = true} or {}
if charged and redis.call('HEXISTS', key.job(job), 'watched') == 1 then note_event(job, arg.slot, arg.kind, {begun}) end
local tokens = unregister(arg.slot, function(_, i) return known and i <= position + 1 end, kept)
redis.call('SREM', key.worker_slots(arg.worker), arg.slot) -- its own hash may be lost, which says so
if delayed then postpone(job, try) end
if try and not try.again then
  end_job(job, 'failed', cmsgpack.pack({'timeout', begun, arg.record, arg.slot, try.count}))
end
if records then
  redis.call('HSET', key.deaths(job), begun, cmsgpack.pack(records))
  redis.call('PEXPIRE', key.deaths(job), life_of(job))
  redis.call('SADD', key.alone(job), begun)
  redis.call('PEXPIRE', key.alone(job), life_of(job))
  if #records >= tonumber(redis.call('HGET', key.job(job), 'allowed')) then
    end_job(job, 'failed', cmsgpack.pack({'died', begun, cmsgpack.pack(records), ''}))
  end
end
pass_on(tokens)
return 'ok'
