-- Renew the expiry of all that a job, or the queue itself, has.
-- keys: queue jobs active workers slots job answer names blocks edges consts parked finished values log alone deaths tries wait consumers ready tagged sets delayed restrict leases settle news
--
-- One place, called at the end of each script that writes: Redis drops the expiry with a key
-- that became empty, so a ready set that drains and fills again would otherwise live for ever.
-- A PEXPIRE costs 0.3 us, and it is per chunk, not per task. Used for cleaning only, never for
-- correctness: the life of a job (lib/life.lua) is far above any pause of a living client.
--@include ready

local function renew_queue()
  redis.call('PEXPIRE', key.queue(), DAY)
  redis.call('PEXPIRE', key.jobs(), DAY)
  redis.call('PEXPIRE', key.active(), DAY)
  redis.call('PEXPIRE', key.workers(), DAY)
  redis.call('PEXPIRE', key.slots(), DAY)
end

local function renew_job(job)
  local life = life_of(job)
  for _, name in ipairs({
    key.job(job), key.answer(job), key.names(job), key.blocks(job), key.edges(job), key.consts(job),
    key.parked(job), key.finished(job), key.values(job),
    key.log(job), key.alone(job), key.deaths(job), key.wait(job), key.consumers(job),
    key.ready(job), key.sets(job), key.restrict(job), key.leases(job), key.settle(job),
    key.news(job), key.tries(job), key.delayed(job),
  }) do
    redis.call('PEXPIRE', name, life)
  end
end

-- Renew its tagged sets too, which are too many for each step: for those who look after a job.
--
-- The time of a detached job that ended is counted from its end, not from the last look at it.
local function renew_all(job)
  if redis.call('HEXISTS', key.job(job), 'expiring') == 1 then return end
  for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
    redis.call('PEXPIRE', key.tagged(job, set), life_of(job))
  end
  renew_job(job)
end
