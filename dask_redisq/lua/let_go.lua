-- The client of a kept job wants its values no longer; the job ends, unless another one uses them.
-- keys: job client
-- args: job
-- returns: 1 if it is to be swept, 0 if another job holds it, or it is gone
--@include full
--@include holders
--@include ending
local job = arg.job
local meta = redis.call('HMGET', key.job(job), 'state', 'kept')
if not meta[1] or not meta[2] then return 0 end
write_when_full()
redis.call('DEL', key.client(job))
redis.call('HSET', key.job(job), 'let_go', '1') -- a late copy of another call must not take it back
if is_held(job) then return 0 end
if meta[1] == 'running' then
  end_job(job, 'cancelled', cmsgpack.pack({'cancelled', -1, 'nobody holds its values any more', ''}))
end
return 1
