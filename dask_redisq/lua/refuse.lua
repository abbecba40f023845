-- Count payloads of a job that were refused for their signature.
-- keys: queue job
-- args: job who total
-- returns: how many this call added
--@include full
--
-- `total` only grows for one `who`, and is kept with the job: a call that comes twice, or after a
-- newer one, adds nothing. Without its job nobody could tell that, so then nothing is counted.
if redis.call('EXISTS', key.job(arg.job)) == 0 then return 0 end
local total, field = tonumber(arg.total), 'refused:' .. arg.who
local more = total - tonumber(redis.call('HGET', key.job(arg.job), field) or 0)
if more <= 0 then return 0 end
write_when_full()
redis.call('HSET', key.job(arg.job), field, total)
redis.call('HINCRBY', key.queue(), 'refused', more)
return more
