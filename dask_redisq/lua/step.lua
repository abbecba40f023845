-- Finish a slot's lease and give it the next: one round trip per chunk.
-- keys: queue slots slot job finished leases wake idle tries delayed
-- args: slot seq job epoch batch failure known want floor others rest tag wishes
-- returns: msgpack {status, refused tasks, lease or false, look again in ms}
--@include full
--@include finish
--@include events
--@include take
--@include retry
--@include leases
--@include settle
--@include ending
--@include expire
--@include damage
--@include lists
--@seldom bitfield end_of_run first_life set_life reopen give_news mark_damaged new_epoch distrust_all
--@seldom read_restriction tags_to_wake has_room tags_of wake wake_slot wake_for wake_task wake_for_sets
--@seldom add_to_set activate value_seen sorted_pairs acceptable decide_component add add_pairs sum_accepted
--@seldom count_unseen evict drop_refused note_event count_try write_try postpone release_due set_name in_order
--@seldom note_served passed_over take_wished read_wishes pace_of choose tell_worker renew_all end_job
--@seldom contains without
--
-- status: 'ok', 'stale' (an older call of this slot, nothing was leased or given back), 'frozen'
-- (nothing was done: the same call again in a moment),
-- 'unregistered' (results count, nothing is leased), 'wish' (nothing was leased: the lease is the name of a
-- job, whose policy is to be asked by wish.lua before the next call). `rest` = '1': enter the slot as idle if
-- it gets nothing. `failure` = msgpack {task, kind, payload, retries (-1: the job's)}, or ''. `want` and `floor` hold for
-- tasks of the job `known`, and `others` = msgpack {job, want, floor, ...}, or '', says so of further
-- ones; of a job that is in neither, whose tasks may take an hour each, it gets one. `tag`: what its
-- task code set (tags.py), or ''; it counts for what is leased here. `wishes` = msgpack {job, {task, ...}, job,
-- ...}, or '': what policies answered; false for one that did not end, which is asked no more.
local RENEWED = DAY / 24 -- how old the expiry of a slot may become
local slot, seq = arg.slot, tonumber(arg.seq)
local state = redis.call('HMGET', key.slot(slot), 'seq', 'answer', 'job', 'tags', 'steady', 'holds', 'tag',
  'idle', 'renewed')
-- Without its hash, which the server evicted, it has to register again, as without the rest.
local registered = state[1] and redis.call('SISMEMBER', key.slots(), slot) == 1
if registered then
  -- A reply was lost, or a copy of the call was under way: the same answer, or a refusal. Were
  -- it run again it would lease a second time, and nobody would know that lease.
  if seq == tonumber(state[1]) then return state[2] end
  if seq < tonumber(state[1]) then return cmsgpack.pack({'stale', {}, false, 0}) end
end

-- Decide. Nothing is written before all of this was read and checked.
local job, refused, plan = arg.job, {}, nil
local attempt = string.sub(slot, 1, 16) .. string.format('%08x', seq - 1)
local batch = job ~= '' and cmsgpack.unpack(arg.batch) or {{}, {}, {}}
local groups = batch[1]
local wishes, endless = {}, {}
if arg.wishes ~= '' then wishes, endless = read_wishes(arg.wishes) end
-- All that is asked of the job, at once: a command costs more than a field.
local meta = redis.call('HMGET', key.job(job), 'state', 'epoch', 'frozen', 'rebuilt', 'history', 'sealed', 'watched',
  'life', 'fresh_until', 'waiting', 'hard:1', 'ordered', 'asks', 'n')
if meta[8] then lives[job] = tonumber(meta[8]) end
-- With another history, an input of this batch may be a result that nobody knows any more. An
-- unsealed job has another epoch by then: only its client could have it rebuilt, and may be dead, while
-- this slot would wait for a whole lease.
if (meta[3] or meta[5] and meta[6]) and meta[1] == 'running' and (#groups > 0 or arg.failure ~= '') then
  return cmsgpack.pack({'frozen', {}, false, 0})
end
local lease_packed = state[3] == job and job ~= '' and redis.call('HGET', key.leases(job), slot)
local held = lease_packed and cmsgpack.unpack(lease_packed)
local current = registered and held and held[1] == seq - 1
local alive = meta[1] == 'running' and meta[2] == arg.epoch
local touched = alive
if alive then
  plan = decide_batch(job, batch, attempt)
  refused = plan.refused
else
  plan = {done = {}, accepted = {}}
  for _, group in ipairs(groups) do
    for _, task in ipairs(group[TASKS]) do refused[#refused + 1] = task end
  end
end
-- A late failure never counts, as a late success may: W2 raises in A while W1's late result of A
-- was accepted. It counts for an open task of the current lease; for one that followed from that
-- lease, only if all that was made before it was accepted; for one that was given back, never.
local failure, failed, try = arg.failure ~= '' and cmsgpack.unpack(arg.failure), false, nil
-- Nor does it if this very batch brings the task: its value arrived, and the slot never heard so.
local counts = failure and alive and current and not plan.done[failure[1]]
if counts and not read_bits(key.finished(job), {failure[1]})[failure[1]] then
  failed = #refused == 0
  failed = (failed or contains(held[2], failure[1])) and not contains(held[3] or {}, failure[1])
  if failed then try = count_try(job, failure[1], failure[4]) end
end
local unseen = current and worst_unseen(job, plan.unseen or {})

-- Write.
write_when_full()
for _, one in ipairs(registered and endless or {}) do redis.call('HDEL', key.job(one), 'asks', 'policy') end
local again = try and try.again
local kept = {} -- what does not become ready with the rest: it is delayed
if again then
  write_try(job, try)
  if meta[7] then note_event(job, slot, 'raised', {try.task}) end
  if try.delay > 0 then kept[try.task] = true end
end
if unseen then count_unseen(job, plan.unseen) end
local spare = 0
local next_one = registered and seq == tonumber(state[1]) + 1
-- A slot calls by rising numbers, each once it has the answer before. If that call is forgotten
-- here, the server came back older. Not if the slot was registered again meanwhile: an old copy of
-- a call may then have come first.
if registered and state[5] == '1' and not next_one then distrust_all() end
if registered then
  if state[8] then leave_idle(slot) end
  spare = redis.call('LLEN', key.wake(slot))
  if spare > 0 then redis.call('DEL', key.wake(slot)) end
  -- Not before: it is in the idle set of the tag that it had.
  if (state[7] or '') ~= arg.tag then redis.call('HSET', key.slot(slot), 'tag', arg.tag) end
end
local ready = {free = {}, near = {}}
if alive then
  -- After a rebuild, too, a task of this lease may be ready or leased elsewhere.
  ready = write_batch(job, plan, attempt, current and not held[3] and not meta[4])
  if #plan.accepted > 0 and meta[7] then note_event(job, slot, true, plan.accepted) end
elseif #groups > 0 then
  drop_refused(job, groups, plan, attempt)
end
if alive and #refused > 0 then drop_refused(job, groups, plan, attempt) end
if #refused > 0 and meta[1] == 'running' and meta[7] then note_event(job, slot, 'dropped', refused) end
if state[3] and registered then
  -- Numbers of one job say nothing of another's: a server that came back older may hold a lease
  -- of another job than the slot reports.
  local mine, begun = state[3] == job, {}
  for _, task in ipairs(refused) do begun[task] = mine end
  if failure and mine then begun[failure[1]] = true end
  local out = setmetatable(mine and kept or {}, {__index = mine and plan.done or nil})
  end_lease(state[3], slot, out, function(task) return begun[task] end, lease_packed)
  if state[6] then redis.call('HDEL', key.slot(slot), 'holds') end
end
if failed and not again then
  end_job(job, 'failed', cmsgpack.pack({failure[2], failure[1], failure[3], slot, try.count}))
  alive = false
elseif unseen and unseen.over then
  end_job(job, 'failed', cmsgpack.pack({'unseen', unseen.task, tostring(unseen.count), slot}))
  alive = false
end
if alive then
  if again and try.delay > 0 then
    -- It was leased, or it followed from what was leased and is ready by what was accepted. If its
    -- edges are left to settle it is neither: then it comes back with them.
    local open = contains(held[2], try.task)
    ready.free, open = without(ready.free, try.task, open)
    ready.near, open = without(ready.near, try.task, open)
    if open then postpone(job, try) end
  end
  if #plan.accepted > 0 and (#plan.outputs > 0 or meta[7]) and meta[10] then tell_client(job) end
  make_ready(job, ready.near, registered and slot or '')
  if not meta[3] then settle_edges(job) end
  if not plan.total or plan.total == tonumber(meta[14]) then alive = not end_if_done(job) end
end
if touched then renew_job(job, meta[9]) end
if not registered then
  if alive then make_ready(job, ready.free, '') end
  return cmsgpack.pack({'unregistered', refused, false, 0})
end

local found, retry, asked = false, 0, nil
local fresh = {from = 1}
if alive and not (meta[11] or meta[12] or meta[13]) then
  for _, task in ipairs(ready.free) do fresh[#fresh + 1] = task end
elseif alive then
  make_ready(job, ready.free, '')
end
local tags = cmsgpack.unpack(state[4])
if arg.tag ~= '' then tags[#tags + 1] = arg.tag end
if tonumber(arg.want) > 0 then
  found, retry, asked = lease(slot, seq, tags, job, fresh, wishes)
else
  make_ready(job, first_of(fresh, #fresh), '')
end
if tonumber(arg.want) == 0 then spare = math.max(spare, 1) end
-- Others may wait for what this slot held, a resource or a place among so many slots, and sleep.
if state[3] and (state[6] and redis.call('HEXISTS', key.slot(slot), 'holds') == 0
    or not (found and found[1] == state[3]) and redis.call('HEXISTS', key.job(state[3]), 'most') == 1) then
  spare = math.max(spare, 1)
end
pass_on(spare) -- before the slot is idle itself: it has looked
local answer = cmsgpack.pack({asked and 'wish' or 'ok', refused, asked or found, retry})
local fields, now = {'seq', seq, 'answer', answer, 'steady', next_one and '1' or '0'}, now_ms()
if found then
  fields[7], fields[8], fields[9], fields[10] = 'job', found[1], 'since', now
elseif state[3] then
  redis.call('HDEL', key.slot(slot), 'job')
end
if not found and arg.rest == '1' and not asked then
  for _, tag in ipairs(tags) do
    redis.call('ZADD', key.idle(tag), now, slot)
    redis.call('PEXPIRE', key.idle(tag), DAY)
  end
  fields[7], fields[8] = 'idle', '1'
end
local renews = now - (state[9] or 0) > RENEWED
if renews then fields[#fields + 1], fields[#fields + 2] = 'renewed', now end
redis.call('HSET', key.slot(slot), unpack(fields))
if renews then redis.call('PEXPIRE', key.slot(slot), DAY) end
if found and not (touched and found[1] == job) then renew_job(found[1]) end
return answer
