-- Unregister a slot, or a whole worker: their leases go back, a death is charged to one task.
-- keys: workers alive worker_slots slots slot control leases job finished deaths alone
-- args: worker slot seq begun position death
-- returns: 'ok'
--@include full
--@include leases
--@include ending
--@include numbers
--
-- `slot` = '' unregisters the worker with all its slots. `begun` is the task that was running
-- (-1: none) in lease `seq`, `position` how far down the lease the slot was; what lies
-- behind is as good as new. `death` = a msgpack record of how the slot died, '' for an
-- orderly leave. Only the task that was running is charged, at most once: the registration
-- that this removes is what makes a replay do nothing.
write_when_full()
local function charge(job, task)
  if redis.call('HGET', key.job(job), 'state') ~= 'running' then return end
  if read_bits(key.finished(job), {task})[task] then return end -- others did it meanwhile
  local packed = redis.call('HGET', key.deaths(job), task)
  local records = packed and cmsgpack.unpack(packed) or {}
  records[#records + 1] = arg.death
  redis.call('HSET', key.deaths(job), task, cmsgpack.pack(records))
  redis.call('PEXPIRE', key.deaths(job), life_of(job))
  redis.call('SADD', key.alone(job), task)
  redis.call('PEXPIRE', key.alone(job), life_of(job))
  if #records >= tonumber(redis.call('HGET', key.job(job), 'allowed')) then
    end_job(job, 'failed', cmsgpack.pack({'died', task, cmsgpack.pack(records), ''}))
  end
end

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
if redis.call('SISMEMBER', key.slots(), arg.slot) == 0 then return 'ok' end
local stored = redis.call('HMGET', key.slot(arg.slot), 'seq', 'job')
local job, begun, position = stored[2], tonumber(arg.begun), tonumber(arg.position)
-- The slot died with a step under way: the lease here is not the one that it was running.
local known = tonumber(stored[1]) == tonumber(arg.seq)
local tokens = unregister(arg.slot, function(_, i) return known and i <= position + 1 end)
if job and known and begun >= 0 and arg.death ~= '' then charge(job, begun) end
pass_on(tokens)
return 'ok'
