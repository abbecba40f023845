-- Fail a frozen job that nobody can repair: part of its graph is gone, or a constant.
-- keys: job
-- args: job generation
-- returns: 'failed', or 'late' when the job is not frozen under this generation
--@include full
--@include ending
--
-- Its client has the graph, and submits it again when it reads this. Left as it is the job would be
-- rebuilt in vain for ever.
write_when_full()
local meta = redis.call('HMGET', key.job(arg.job), 'state', 'frozen')
if meta[1] ~= 'running' or meta[2] ~= arg.generation then return 'late' end
end_job(arg.job, 'failed', cmsgpack.pack({'damaged', -1, '', ''}))
return 'failed'
