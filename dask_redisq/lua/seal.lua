-- Declare the upload of a job complete: from now on it does not need its client to run.
-- keys: job blocks slots
-- args: job
-- returns: the state of the job ('' when it is gone), or 'incomplete' if a block is missing
--@include full
--@include ending
--@include expire
local meta = redis.call('HMGET', key.job(arg.job), 'state', 'blocks')
-- Of a job that ended, the upload stopped half way: that is no error of its own. One that failed needs no
-- client any more: if it is detached, who attaches is told why it failed.
write_when_full()
if meta[1] == 'failed' then redis.call('HSET', key.job(arg.job), 'sealed', '1') end
if meta[1] ~= 'running' then return meta[1] or '' end
if redis.call('HLEN', key.blocks(arg.job)) ~= tonumber(meta[2]) then return 'incomplete' end
hear_client(arg.job)
local opens = redis.call('HMGET', key.job(arg.job), 'sealed', 'asks')
redis.call('HSET', key.job(arg.job), 'sealed', '1')
if opens[2] and not opens[1] then wake_for_sets(arg.job, redis.call('SCARD', key.slots())) end
end_if_done(arg.job)
renew_job(arg.job)
return redis.call('HGET', key.job(arg.job), 'state')
