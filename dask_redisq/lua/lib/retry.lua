-- Let a task that failed run again, while it has tries left, and maybe only after a pause.
-- keys: job tries alone delayed
--@include ready
--
-- Counted inside step and unregister, under what makes those happen once: were it a call of its
-- own, a lost reply would cost the task two of its tries.

-- Read how often a task failed, this time too, and whether it may run again after that.
--
-- `own` is what the task itself was given, -1 for what holds for the job.
local function count_try(job, task, own)
  local meta = redis.call('HMGET', key.job(job), 'retries', 'retry_delay')
  local count = tonumber(redis.call('HGET', key.tries(job), task) or 0) + 1
  local retries = own >= 0 and own or tonumber(meta[1] or 0)
  return {task = task, count = count, again = count <= retries, delay = tonumber(meta[2] or 0)}
end

-- Note a failure after which the task runs again, alone. To be called before it is made ready.
local function write_try(job, try)
  redis.call('HSET', key.tries(job), try.task, try.count)
  redis.call('PEXPIRE', key.tries(job), life_of(job))
  redis.call('SADD', key.alone(job), try.task)
  redis.call('PEXPIRE', key.alone(job), life_of(job))
end

-- Make the task ready in `try.delay` ms. One idle slot is woken now, to be told when to look:
-- its own re-check may be seconds after the task is due.
local function postpone(job, try)
  redis.call('ZADD', key.delayed(job), now_ms() + try.delay, try.task)
  redis.call('PEXPIRE', key.delayed(job), life_of(job))
  if redis.call('HEXISTS', key.job(job), 'frozen') == 1 then return end
  activate(job)
  wake_task(job, try.task)
end

-- Make ready what is due; return in how many ms the next one is, nil if none waits.
local function release_due(job)
  local now = now_ms()
  local due = redis.call('ZRANGEBYSCORE', key.delayed(job), '-inf', now, 'LIMIT', 0, 1000)
  if #due > 0 then
    redis.call('ZREM', key.delayed(job), unpack(due))
    make_ready(job, due, '')
  end
  local next_ = redis.call('ZRANGE', key.delayed(job), 0, 0, 'WITHSCORES')[2]
  return next_ and math.max(1, next_ - now)
end
