-- Renew the expiry of all that a job, or the queue itself, has.
-- keys: queue jobs active workers slots files job answer names about blocks edges consts parked finished values log alone deaths tries wait consumers ready tagged sets delayed restrict leases settle news events warnings holders held children
--
-- Used for cleaning only, never for correctness: the life of a job (lib/life.lua) is far above any
-- pause of a living client. So a tenth of it may pass between two renewals: at each step they were
-- half of all commands, 0.1 ms of 0.4. Redis drops the expiry with a key that became empty: a ready
-- set that drains and fills again would live for ever. Who writes into a key that may be new sets its expiry.
--@include ready

local function renew_queue()
  redis.call('PEXPIRE', key.queue(), DAY)
  redis.call('PEXPIRE', key.jobs(), DAY)
  redis.call('PEXPIRE', key.active(), DAY)
  redis.call('PEXPIRE', key.workers(), DAY)
  redis.call('PEXPIRE', key.slots(), DAY)
  redis.call('PEXPIRE', key.files(), DAY)
end

-- Set the expiry of what a job may have when it is made; as `renew_all`, which has 20 keys more.
local function renew_first(job)
  local life = life_of(job)
  redis.call('HSET', key.job(job), 'fresh_until', now_ms() + math.floor(life / 10))
  for _, name in ipairs({
    key.job(job), key.answer(job), key.names(job), key.wait(job), key.consumers(job), key.restrict(job), key.held(job),
  }) do
    redis.call('PEXPIRE', name, life)
  end
end

-- The time of a detached job that ended is counted from its end, not from the last look at it.
local function renew_all(job)
  local meta = redis.call('HMGET', key.job(job), 'life', 'expiring')
  if not meta[1] or meta[2] then return end
  local life = tonumber(meta[1])
  redis.call('HSET', key.job(job), 'fresh_until', now_ms() + math.floor(life / 10))
  for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
    redis.call('PEXPIRE', key.tagged(job, set), life)
  end
  for _, name in ipairs({
    key.job(job), key.answer(job), key.names(job), key.about(job), key.blocks(job), key.edges(job), key.consts(job),
    key.parked(job), key.finished(job), key.values(job),
    key.log(job), key.alone(job), key.deaths(job), key.wait(job), key.consumers(job),
    key.ready(job), key.sets(job), key.restrict(job), key.leases(job), key.settle(job),
    key.news(job), key.events(job), key.warnings(job), key.tries(job), key.delayed(job),
    key.holders(job), key.held(job), key.children(job),
  }) do
    redis.call('PEXPIRE', name, life)
  end
end

-- As `renew_all`, if that was not done a moment ago. `fresh`: the job's fresh_until, if that is known.
local function renew_job(job, fresh)
  fresh = fresh or redis.call('HGET', key.job(job), 'fresh_until')
  if not fresh or now_ms() >= tonumber(fresh) then renew_all(job) end
end
