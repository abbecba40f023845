-- Tell the queue which run of the server this is; a new one may have another history.
-- keys: queue
-- args: run
-- returns: 1 if it is another run than the queue knew, and its jobs are to be rebuilt; else 0
--@include full
--@include damage
--@include expire
--
-- A restart from the last snapshot, or a failover to a replica that lagged, forgets the last second:
-- results that were accepted, and leases that slots still hold. Nothing in the data tells that.
write_when_full()
local known = redis.call('HGET', key.queue(), 'run')
if known == arg.run then return 0 end
redis.call('HSET', key.queue(), 'run', arg.run, 'run_at', now_ms())
renew_queue()
distrust_all()
return known and 1 or 0
