-- Cancel a job: no waiting task starts any more, supervisors stop the running ones.
-- keys: job
-- args: job reason tomb
-- returns: the state that the job had ('' when it is gone)
--@include full
--@include ending
--@include tomb
--
-- `tomb` = '1': somebody may ask for it later. Not when its own client gives it up.
local state = redis.call('HGET', key.job(arg.job), 'state')
write_when_full()
if state == 'running' then
  local reason = cmsgpack.pack({'cancelled', -1, arg.reason, ''})
  end_job(arg.job, 'cancelled', reason)
  if arg.tomb == '1' then bury(arg.job, 'cancelled', reason) end
end
return state or ''
