-- Give the tasks back that wait behind a long one in a lease, if a slot is idle.
-- keys: slots slot job leases idle
-- args: slot seq position
-- returns: 'given', 'nobody' (no slot waits for work), or 'over' (it is not that lease, or nothing is left)
--@include full
--@include ready
--
-- The mean was 1 ms, so W1 leased 500 tasks; the first takes ten minutes, and W2 sleeps. `position`
-- counts from 0: the leased task that runs now; what lies behind did not begin, and is as good as
-- new. W1 may run some of it all the same, before it hears of this: of two results the first
-- counts. The lease keeps a list of what was given, since a failure there is not W1's to tell.
local seq, begun = tonumber(arg.seq), tonumber(arg.position) + 1
if redis.call('SISMEMBER', key.slots(), arg.slot) == 0 then return 'over' end
local stored = redis.call('HMGET', key.slot(arg.slot), 'seq', 'job')
local job = stored[2]
if not job or tonumber(stored[1]) ~= seq then return 'over' end
local meta = redis.call('HMGET', key.job(job), 'state', 'python', 'frozen')
local packed = redis.call('HGET', key.leases(job), arg.slot)
if meta[1] ~= 'running' or not packed then return 'over' end
if meta[3] then return 'nobody' end -- it is rebuilt now
local lease = cmsgpack.unpack(packed)
local tasks, kept, rest, given = lease[2], {}, {}, lease[3] or {}
for i, task in ipairs(tasks) do
  if i <= begun then kept[#kept + 1] = task else rest[#rest + 1] = task end
end
if #rest == 0 then return lease[3] and 'given' or 'over' end -- given before: a replay
if redis.call('ZCARD', key.idle(meta[2])) == 0 then return 'nobody' end
for _, task in ipairs(rest) do given[#given + 1] = task end
write_when_full()
redis.call('HSET', key.leases(job), arg.slot, cmsgpack.pack({seq, kept, given}))
make_ready(job, rest, '')
return 'given'
