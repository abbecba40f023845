-- Remove a slice of an ended job; call until it answers 1.
-- keys: jobs active job answer names about blocks edges consts const parked finished values value log alone deaths tries client wait consumers ready tagged sets delayed restrict leases settle news events warnings holders held children new_wait new_consumers new_restrict new_answer new_names
-- args: job
-- returns: 1 when nothing of the job is left, 0 to call again, -1 while the job runs
--
-- What it used of other jobs it holds no longer; who looks finds those that nobody holds.
--
-- 100,000 keys deleted in one script stall everyone, so values stored apart go 200 a call. The
-- job's own hash goes last: while it is there, whoever has time can go on with the removal.

-- What is left is no whole job any more, should somebody ask for it (rerun.lua).
local function part_is_gone(job)
  if redis.call('EXISTS', key.job(job)) == 1 then redis.call('HSET', key.job(job), 'swept', '1') end
  return 0
end

local job = arg.job
local state = redis.call('HGET', key.job(job), 'state')
if state == 'running' then return -1 end
if state and redis.call('HEXISTS', key.job(job), 'big') == 1 then
  local found = redis.call('HSCAN', key.values(job), 0, 'COUNT', 200)
  for i = 1, #found[2], 2 do
    local task, record = found[2][i], found[2][i + 1]
    if string.sub(record, 1, 1) == 'e' then
      redis.call('UNLINK', key.value(job, task, string.sub(record, 2, 25)))
    end
    redis.call('HDEL', key.values(job), task)
  end
  if #found[2] > 0 then return part_is_gone(job) end
end
local digests = redis.call('SRANDMEMBER', key.consts(job), 200)
if #digests > 0 then
  for _, digest in ipairs(digests) do
    redis.call('UNLINK', key.const(job, digest))
    redis.call('SREM', key.consts(job), digest)
  end
  return part_is_gone(job)
end
for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
  redis.call('UNLINK', key.tagged(job, set))
end
for _, other in ipairs(redis.call('SMEMBERS', key.held(job))) do
  redis.call('SREM', key.holders(other), job)
end
redis.call('ZREM', key.active(), job)
redis.call('ZREM', key.jobs(), job)
redis.call('UNLINK', key.job(job), key.answer(job), key.names(job), key.about(job), key.blocks(job), key.edges(job),
  key.consts(job), key.parked(job), key.finished(job),
  key.values(job), key.log(job), key.alone(job), key.deaths(job), key.client(job), key.wait(job),
  key.consumers(job), key.ready(job), key.sets(job), key.restrict(job), key.leases(job),
  key.settle(job), key.news(job), key.events(job), key.warnings(job), key.tries(job), key.delayed(job),
  key.holders(job), key.held(job), key.children(job))
-- A client that lost its connection staged again what create takes. With that, a late copy of create
-- would bring the job back.
redis.call('UNLINK', key.new_wait(job), key.new_consumers(job), key.new_restrict(job), key.new_answer(job),
  key.new_names(job))
return 1
