-- Keep what tasks warned of, for the client to issue.
-- keys: job warnings
-- args: job entries
-- returns: 1, or 0 when the job does not run
--@include full
--@include life
--
-- `entries` = msgpack of packed warnings (task_warnings.py). Each different one is kept once, which makes
-- a copy of this call harmless; at most about 200 a job, as a task may warn of ever other things, and
-- then one that says so.
local MORE = cmsgpack.pack({'builtins', 'UserWarning',
  'tasks of a job warned of more than 200 different things: the others are only in the logs of its workers',
  'dask_redisq', 0})
if redis.call('HGET', key.job(arg.job), 'state') ~= 'running' then return 0 end
local entries = cmsgpack.unpack(arg.entries)
if redis.call('SCARD', key.warnings(arg.job)) > 200 then entries = {MORE} end
write_when_full()
redis.call('SADD', key.warnings(arg.job), unpack(entries))
redis.call('PEXPIRE', key.warnings(arg.job), life_of(arg.job))
return 1
