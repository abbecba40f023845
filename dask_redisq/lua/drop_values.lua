-- Drop values of a frozen job that nobody needs, or that are to be made again.
-- keys: job
-- args: job generation tasks
-- returns: 1, or 0 when the job is not frozen under this generation
--@include edges
if redis.call('HGET', key.job(arg.job), 'frozen') ~= arg.generation then return 0 end
free_values(arg.job, cmsgpack.unpack(arg.tasks))
return 1
