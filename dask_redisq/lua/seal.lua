-- Declare the upload of a job complete: from now on it does not need its client to run.
-- keys: job blocks slots log settle
-- args: job wait
-- returns: the state of the job ('' when it is gone), 'incomplete' if a block is missing, or 'waiting': it runs, and its client is entered as waiting
--@include full
--@include ending
--@include expire
--
-- `wait` = '1': there is nothing yet that gather.lua would give the client. It waits for news then, without
-- asking: its question would come before those of the slots, which are just woken.
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
local state = redis.call('HMGET', key.job(arg.job), 'state', 'frozen', 'damaged')
if arg.wait == '1' and state[1] == 'running' and not state[2] and not state[3]
    and redis.call('EXISTS', key.log(arg.job), key.settle(arg.job)) == 0 then
  redis.call('HSET', key.job(arg.job), 'waiting', '1')
  return 'waiting'
end
return state[1]
