-- Tell every registered worker of the queue to leave it, and cancel its jobs.
-- keys: workers jobs job
-- args: reason
-- returns: how many workers are still registered
--@include full
--@include control
--@include ending
--@include tomb
write_when_full()
for _, job in ipairs(redis.call('ZRANGE', key.jobs(), 0, -1)) do
  local reason = cmsgpack.pack({'cancelled', -1, arg.reason, ''})
  if redis.call('HGET', key.job(job), 'state') == 'running' then end_job(job, 'cancelled', reason) end
  bury(job, 'cancelled', reason)
end
local workers = redis.call('HKEYS', key.workers())
for _, worker in ipairs(workers) do tell_worker(worker, 'stop', '', '', 0) end
return #workers
