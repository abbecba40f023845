-- Enter a large constant among those of its job, before its content is stored: who sweeps the job removes it.
-- keys: job consts
-- args: job digest
-- returns: the state of the job ('' when it is gone)
--@include life
--
-- Its content is megabytes, so a plain SET brings it, and put_block says that it is needed. A client that
-- was killed between these two left it, when all else of the job was gone.
local state = redis.call('HGET', key.job(arg.job), 'state') or ''
if state ~= 'running' then return state end
hear_client(arg.job)
redis.call('SADD', key.consts(arg.job), arg.digest)
redis.call('PEXPIRE', key.consts(arg.job), life_of(arg.job))
return state
