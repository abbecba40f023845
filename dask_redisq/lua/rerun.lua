-- Let a detached job that failed go on from where it failed: what is finished stays so, the rest runs.
-- keys: queue job jobs tomb blocks edges deaths tries
-- args: job epoch fresh
-- returns: 'rerun' (also for a replay); 'late' when it failed in another epoch than `epoch`; 'incomplete' without its whole graph; 'kept' for a job that is not detached; 'over' when it is being removed; or the state of a job that did not fail ('' when it is gone)
--@include clock
--@include life
--@include expire
--
-- Who raised, or was killed too often, left tasks behind that are in no set: what became ready by the
-- same step, and what others gave back when the job had ended. So nothing is patched here. The job is
-- frozen, as if a rebuilder had died over it, and the next one makes all that can be derived.
--
-- The new epoch is for slots that still run its tasks. W1 raises in A, and the job fails; it is run
-- again; W2, which ran B all the time, raises as well: a lease of the old epoch must not end the new
-- run. `epoch` is the one in which the caller saw it fail. A copy of this call that comes when the job
-- has failed once more must not run it a third time, nor whoever asks at the same moment.
local job = arg.job
local meta = redis.call('HMGET', key.job(job), 'state', 'epoch', 'ttl', 'blocks', 'ended', 'swept')
if not meta[1] then return '' end
local run = redis.call('HGET', key.queue(), 'run') or ''
-- Of this run of the server: see create.lua.
local fresh = string.sub(redis.sha1hex(arg.fresh .. ' ' .. run), 1, 16)
if meta[2] == fresh then return 'rerun' end
if meta[1] ~= 'failed' then return meta[1] end
if tonumber(meta[3]) == 0 then return 'kept' end
if redis.call('EXISTS', key.tomb(job)) == 1 or meta[6] or now_ms() >= tonumber(meta[5]) + tonumber(meta[3]) then
  return 'over'
end
-- It failed while it was sent, or its keys were deleted: nobody else has the graph. Of a server that came
-- back older the whole graph may be there of a job that was never sealed: its client is done with it, so it
-- is sealed here; else it would be frozen for a rebuild that refuses it.
local blocks = tonumber(meta[4])
if redis.call('HLEN', key.blocks(job)) ~= blocks or redis.call('HLEN', key.edges(job)) ~= blocks then
  return 'incomplete'
end
if meta[2] ~= arg.epoch then return 'late' end

reopen(job)
redis.call('HSET', key.job(job), 'sealed', '1', 'epoch', fresh, 'damaged', '1', 'frozen', 'nobody', 'frozen_at', 0)
redis.call('HDEL', key.job(job), 'error', 'renewed')
redis.call('DEL', key.deaths(job), key.tries(job))
redis.call('ZADD', key.jobs(), 'NX', now_ms(), job)
renew_all(job)
renew_queue()
return 'rerun'
