-- Store a block of pickled tasks; those that waited only for it become ready.
-- keys: job slots about blocks edges wait finished values consts const
-- args: job number first count payload edges consts near about
-- returns: the state of the job ('' when it is gone)
--@include numbers
--@include damage
--@include ready
--@include expire
--
-- The block is one more dependency of each of its tasks. Without that, a task whose inputs are
-- finished could be leased while its client still pickles it, or died pickling it.
--
-- A block whose large constants are not all here is not stored, and seal finds one missing. The server
-- came back as it was before a constant was stored, and its client, whose next call is this one, does not
-- know: slots would be given the tasks, find the constant gone, give them back, and so for ever.
-- Of one that is stored already the constants are renewed: a client that lost its connection sends
-- them again before the block, and with that they have minutes to live once more.
--
-- `near`: msgpack {task, job, its task, ...}: values of kept jobs that tasks of the block read. Such a
-- task is first offered to the slot that made, and has, the large one. `about`: msgpack {task, packed, ...}: what
-- the job's policy is to know of them, or ''.
local state = redis.call('HGET', key.job(arg.job), 'state') or ''
if state ~= 'running' then return state end
local life, digests = life_of(arg.job), cmsgpack.unpack(arg.consts)
for _, digest in ipairs(digests) do
  if redis.call('EXISTS', key.const(arg.job, digest)) == 0 then return state end
end
hear_client(arg.job)
for _, digest in ipairs(digests) do
  redis.call('SADD', key.consts(arg.job), digest)
  redis.call('PEXPIRE', key.consts(arg.job), life)
  redis.call('PEXPIRE', key.const(arg.job, digest), life) -- born with an expiry of minutes
end
if redis.call('HSETNX', key.blocks(arg.job), arg.number, arg.payload) == 0 then return state end
redis.call('HSET', key.edges(arg.job), arg.number, arg.edges)
redis.call('PEXPIRE', key.blocks(arg.job), life)
redis.call('PEXPIRE', key.edges(arg.job), life)
if arg.about ~= '' then
  redis.call('HSET', key.about(arg.job), unpack(cmsgpack.unpack(arg.about)))
  redis.call('PEXPIRE', key.about(arg.job), life)
end
local each, n = {}, 0
for task = arg.first, arg.first + arg.count - 1 do
  each[n + 1], each[n + 2], n = task, 1, n + 2
end
local waits = subtract(key.wait(arg.job), each)
if waits.torn then mark_damaged(arg.job, false) end
write_counters(key.wait(arg.job), waits)
-- A server that came back older may have forgotten the block, and not the slot that ran it.
local finished, ready = read_bits(key.finished(arg.job), waits.zero), {}
for _, task in ipairs(waits.zero) do
  if not finished[task] then ready[#ready + 1] = task end
end
local owners, near, free, sets = {}, cmsgpack.unpack(arg.near), {}, {}
for i = 1, #near, 3 do
  local record = not owners[near[i]] and redis.call('HGET', key.values(near[i + 1]), near[i + 2])
  local owner = record and string.sub(record, 1, 1) == 'e' and string.sub(record, 2, 17)
  if owner and redis.call('SISMEMBER', key.slots(), owner) == 1 then owners[near[i]] = owner end
end
for _, task in ipairs(ready) do
  local owner = owners[task]
  local some = owner and (sets[owner] or {}) or free
  some[#some + 1] = task
  if owner then sets[owner] = some end
end
for owner, some in pairs(sets) do make_ready(arg.job, some, owner) end
make_ready(arg.job, free, '')
renew_job(arg.job)
return state
