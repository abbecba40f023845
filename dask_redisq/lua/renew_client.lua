-- Renew a client's lease of its job, and the job's keys, for a client that cannot call itself.
-- keys: job client
-- args: job
-- returns: the state of the job ('' when it is gone)
--@include full
--@include expire
--
-- A client that unpickles gigabytes holds its GIL for a minute; its helper calls this meanwhile.
local state = redis.call('HGET', key.job(arg.job), 'state')
if not state then return '' end
write_when_full()
hear_client(arg.job)
renew_job(arg.job)
return state
