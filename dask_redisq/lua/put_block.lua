-- Store a block of pickled tasks; those that waited only for it become ready.
-- keys: job blocks wait consts const
-- args: job number first count payload consts
-- returns: the state of the job ('' when it is gone)
--@include numbers
--@include ready
--@include expire
--
-- The block is one more dependency of each of its tasks. Without that, a task whose inputs are
-- finished could be leased while its client still pickles it, or died pickling it.
local state = redis.call('HGET', key.job(arg.job), 'state') or ''
if state ~= 'running' then return state end
hear_client(arg.job)
if redis.call('HSETNX', key.blocks(arg.job), arg.number, arg.payload) == 0 then return state end
local each = {}
for task = arg.first, arg.first + arg.count - 1 do
  each[#each + 1] = task
  each[#each + 1] = 1
end
local waits = subtract(key.wait(arg.job), each)
if waits.torn then redis.call('HSET', key.job(arg.job), 'damaged', '1') end
write_counters(key.wait(arg.job), waits)
for _, digest in ipairs(cmsgpack.unpack(arg.consts)) do
  redis.call('SADD', key.consts(arg.job), digest)
  redis.call('PEXPIRE', key.const(arg.job, digest), life_of(arg.job)) -- born with an expiry of minutes
end
make_ready(arg.job, waits.zero, '')
renew_job(arg.job)
return state
