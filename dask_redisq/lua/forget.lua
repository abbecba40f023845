-- Give up a detached job with its results; what is left of it is swept.
-- keys: job
-- args: job
-- returns: the state that the job had ('' when it is gone), 'kept' for one that is not detached
--@include full
--@include ending
--@include tomb
local meta = redis.call('HMGET', key.job(arg.job), 'state', 'ttl')
if not meta[1] then return '' end
if tonumber(meta[2]) == 0 then return 'kept' end
write_when_full()
if meta[1] == 'running' then
  end_job(arg.job, 'cancelled', cmsgpack.pack({'cancelled', -1, 'its results were forgotten', ''}))
end
bury(arg.job, 'forgotten', '')
return meta[1]
