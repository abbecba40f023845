-- Tell every registered worker of the queue to leave it, and cancel its jobs.
-- keys: queue workers jobs job removing removed
-- args: reason life
-- returns: how many workers are still registered
--@include full
--@include control
--@include ending
--@include tomb
--
-- Its keys go next, one after the other: for `life` ms from the last word of who deletes them no job is
-- made (create.lua). Of a loop each window is a job, and between two of them it has none here: what tells
-- it that its queue was removed stays.
write_when_full()
redis.call('SET', key.removing(), arg.reason, 'PX', arg.life)
if redis.call('HEXISTS', key.queue(), 'loops') == 1 then
  redis.call('SET', key.removed(), cmsgpack.pack({now_ms(), arg.reason}), 'PX', TOMB_LIFE)
end
for _, job in ipairs(redis.call('ZRANGE', key.jobs(), 0, -1)) do
  local reason = cmsgpack.pack({'cancelled', -1, arg.reason, ''})
  if redis.call('HGET', key.job(job), 'state') == 'running' then end_job(job, 'cancelled', reason) end
  bury(job, 'cancelled', reason)
end
local workers = redis.call('HKEYS', key.workers())
for _, worker in ipairs(workers) do tell_worker(worker, 'stop', '', '', 0) end
return #workers
