-- Cancel a job: no waiting task starts any more, supervisors stop the running ones.
-- keys: job
-- args: job reason
-- returns: the state that the job had ('' when it is gone)
--@include full
--@include ending
local state = redis.call('HGET', key.job(arg.job), 'state')
write_when_full()
if state == 'running' then
  end_job(arg.job, 'cancelled', cmsgpack.pack({'cancelled', -1, arg.reason, ''}))
end
return state or ''
