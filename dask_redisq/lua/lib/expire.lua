-- Renew the expiry of all that a job, or the queue itself, has.
-- keys: queue jobs active workers slots job blocks edges consts parked finished values log alone deaths tries wait consumers ready sets delayed restrict leases settle news
--
-- One place, called at the end of each script that writes: Redis drops the expiry with a key
-- that became empty, so a ready set that drains and fills again would otherwise live for ever.
-- A PEXPIRE costs 0.3 us, and it is per chunk, not per task. Used for cleaning only, never for
-- correctness: a day is far above any pause of a living job.
--@include ready

local function renew_queue()
  redis.call('PEXPIRE', key.queue(), DAY)
  redis.call('PEXPIRE', key.jobs(), DAY)
  redis.call('PEXPIRE', key.active(), DAY)
  redis.call('PEXPIRE', key.workers(), DAY)
  redis.call('PEXPIRE', key.slots(), DAY)
end

local function renew_job(job)
  for _, name in ipairs({
    key.job(job), key.blocks(job), key.edges(job), key.consts(job), key.parked(job), key.finished(job), key.values(job),
    key.log(job), key.alone(job), key.deaths(job), key.wait(job), key.consumers(job),
    key.ready(job), key.sets(job), key.restrict(job), key.leases(job), key.settle(job),
    key.news(job), key.tries(job), key.delayed(job),
  }) do
    redis.call('PEXPIRE', name, DAY)
  end
end
