-- Choose the job and the tasks of a slot's next lease.
-- keys: queue active slots slot workers worker_slots job ready tagged sets leases alone delayed
--@include ready
--@include restrict
--@include retry
--@include wished

local LEAST, MOST = 1, 1000

-- How many tasks of a job fill this slot's time, and how many are worth a round trip; nil if it is unknown.
local function pace_of(job)
  if job == arg.known then return tonumber(arg.want), tonumber(arg.floor) end
  if arg.others == '' then return nil end
  local others = cmsgpack.unpack(arg.others)
  for i = 1, #others, 3 do
    if others[i] == job then return others[i + 1], others[i + 2] end
  end
end

-- How many tasks this slot may take from `ready` ready ones.
--
-- The slot asks for what fills its time budget; its fair share of the backlog caps that, so the
-- tail is spread (guided self-scheduling), but never below `floor`: less than about a
-- millisecond of work would cost more in round trips than it balances.
local function chunk_size(job, chunk, ready)
  if chunk > 0 then return chunk end
  local slots = math.max(1, redis.call('SCARD', key.slots()))
  if chunk < 0 then return math.max(LEAST, math.ceil(ready / slots)) end
  local want, floor = pace_of(job)
  if not want then return LEAST end
  return math.min(MOST, want, math.max(LEAST, floor, math.ceil(ready / (2 * slots))))
end

-- Take up to `count` tasks from the front of a ready set; a task that must run alone only by itself.
local function pop(job, name, count, careful)
  if not careful then
    local found, tasks = redis.call('ZPOPMIN', name, count), {}
    for i = 1, #found, 2 do tasks[#tasks + 1] = tonumber(found[i]) end
    return tasks, 0
  end
  local tasks, alone = {}, 0
  for i, task in ipairs(redis.call('ZRANGE', name, 0, count - 1)) do
    if redis.call('SISMEMBER', key.alone(job), task) == 1 then
      if i == 1 then tasks[1], alone = tonumber(task), 1 end
      break
    end
    tasks[i] = tonumber(task)
  end
  for first = 1, #tasks, 1000 do
    redis.call('ZREM', name, unpack(tasks, first, math.min(first + 999, #tasks)))
  end
  return tasks, alone
end

-- In which order this slot looks at the tagged sets of a job: {first = before the common set,
-- last = after it}, in how many ms another soft set may be taken over, and {set = true} of those that
-- are its own.
--
-- A soft set is its owner's until locality-wait is over or the owner left; one that nobody
-- served for far longer goes first, or a stream of common work would starve it.
local function order_sets(job, slot, tags, patience)
  local first, last, retry, own, now = {}, {}, nil, {[slot] = true}, now_ms()
  local sets = redis.call('ZRANGE', key.sets(job), 0, -1, 'WITHSCORES')
  for i = 1, #sets, 2 do
    local set, age = sets[i], now - sets[i + 1]
    if string.sub(set, 1, 5) == 'hard:' then
      local wanted = read_restriction(job, set)
      local fits = #wanted.tags == 0 or carries(tags, wanted.tags) or carries({slot}, wanted.tags)
      if (fits or wanted.soft) and has_room(slot, wanted) then
        if fits then
          table.insert(first, set)
          own[set] = true
        elseif age >= patience then
          table.insert(last, set)
        else
          retry = math.min(retry or patience, patience - age)
        end
      end
    elseif set == slot then
      table.insert(first, set)
    elseif age >= math.max(1000, 10 * patience) then
      table.insert(first, 1, set)
    elseif age >= patience or redis.call('SISMEMBER', key.slots(), set) == 0 then
      table.insert(last, set)
    else
      retry = math.min(retry or patience, patience - age)
    end
  end
  return first, last, retry, own
end

-- Take from a tagged set.
local function pop_tagged(job, set, own, count, careful)
  local tasks, alone = pop(job, key.tagged(job, set), count, careful)
  note_served(job, set, own)
  return tasks, alone
end

-- Take what the policy of a job wished, or nil; but what it passed over for too long goes first.
local function choose(job, wished, first, last, own, count, careful)
  local sets = in_order(first, last)
  if #wished == 0 then return nil end
  local set, found = passed_over(job, sets), nil
  if set then
    found = {pop(job, set_name(job, set), count, careful)}
    found[3] = set ~= '' and set or nil
  else
    found = take_wished(job, sets, wished, count, careful)
  end
  if found and found[3] then note_served(job, found[3], own[found[3]]) end
  return found
end

-- Take up to `count` of the tasks that just became ready here; `from` marks what is left.
local function first_of(fresh, count)
  local tasks = {}
  for i = fresh.from, math.min(#fresh, fresh.from + count - 1) do tasks[#tasks + 1] = fresh[i] end
  fresh.from = fresh.from + #tasks
  return tasks
end

-- Take tasks of one job for a slot: returns {tasks, alone, set} or nil, and a time to look again (ms); or
-- {}, if the job's policy is to be asked first, which gives `wished`. Third, what a lease tells of the job.
local function take_from(job, slot, tags, fresh, wished)
  local meta = redis.call('HMGET', key.job(job), 'state', 'chunk', 'python', 'patience', 'most', 'asks', 'sealed',
    'epoch', 'block', 'watched', 'files')
  if meta[1] ~= 'running' or not carries(tags, {meta[3]}) then return nil end
  -- Its tasks are all there before one is given away: the right one may be in the last block.
  if meta[6] and not meta[7] then return nil end
  if meta[5] and redis.call('HLEN', key.leases(job)) >= tonumber(meta[5]) then return nil end
  if meta[6] and not wished then return {} end
  local careful, due = redis.call('EXISTS', key.alone(job)) == 1, nil
  if careful then due = release_due(job) end -- what was delayed runs alone
  local count = tonumber(meta[2])
  if count <= 0 then
    local backlog = redis.call('ZCARD', key.ready(job)) + redis.call('ZCARD', key.tagged(job, slot))
    count = chunk_size(job, count, backlog + #fresh - fresh.from + 1)
  end
  -- The short way, unless tasks wait in tagged sets: own ones, or another's for too long.
  if not careful and not meta[6] and redis.call('EXISTS', key.sets(job)) == 0 then
    local tasks = first_of(fresh, count)
    if #tasks < count then
      for _, task in ipairs((pop(job, key.ready(job), count - #tasks, false))) do
        tasks[#tasks + 1] = task
      end
    end
    if #tasks == 0 then return nil end
    return {tasks, 0}, nil, meta
  end
  make_ready(job, first_of(fresh, #fresh), '')
  local first, last, retry, own = order_sets(job, slot, tags, tonumber(meta[4]))
  local chosen = meta[6] and choose(job, wished, first, last, own, count, careful)
  if chosen then return chosen, nil, meta end
  for _, set in ipairs(first) do
    local tasks, alone = pop_tagged(job, set, own[set], count, careful)
    if #tasks > 0 then return {tasks, alone, set}, nil, meta end
  end
  local tasks, alone = pop(job, key.ready(job), count, careful)
  if #tasks > 0 then return {tasks, alone}, nil, meta end
  for _, set in ipairs(last) do
    tasks, alone = pop_tagged(job, set, own[set], count, careful)
    if #tasks > 0 then return {tasks, alone}, nil, meta end
  end
  if due then retry = math.min(retry or due, due) end
  return nil, retry
end

-- Note that a job was served: the least recently served one of the highest priority is next.
local function serve(job)
  if redis.call('ZCARD', key.active()) > 1 then
    local served = redis.call('HINCRBY', key.queue(), 'serves', 1)
    local priority = redis.call('HGET', key.job(job), 'priority')
    redis.call('ZADD', key.active(), 'XX', served - priority * PRIORITY, job)
  end
  settle_active(job)
end

-- Lease tasks to a slot. `fresh`: tasks of `fresh_job` that just became ready here, its first choice.
-- `wishes`: job -> what its policy wished.
--
-- Returns {job, epoch, chunk, block, alone, tasks, files} or false, and a time to look again (ms);
-- `files`: which uploaded files the job is to see, nothing if there are none. Third, instead, a
-- job whose policy is to be asked.
--
-- Nothing while the queue is suspended: what a slot holds it ends, and what followed from that waits.
local function lease(slot, seq, tags, fresh_job, fresh, wishes)
  if redis.call('HEXISTS', key.queue(), 'suspended') == 1 then
    make_ready(fresh_job, first_of(fresh, #fresh), '')
    return false, 0
  end
  if #fresh > 0 then activate(fresh_job) end
  local none = {from = 1}
  local retry, found, chosen, meta
  for first = 0, 200, 20 do
    local jobs = redis.call('ZRANGE', key.active(), first, first + 19)
    for _, job in ipairs(jobs) do
      local wait
      found, wait, meta = take_from(job, slot, tags, job == fresh_job and fresh or none, wishes[job])
      chosen = job
      if found then break end
      if wait then retry = math.min(retry or wait, wait) end
    end
    if found or #jobs < 20 then break end
  end
  make_ready(fresh_job, first_of(fresh, #fresh), '')
  if not found then return false, retry or 0 end
  if not found[1] then return false, 0, chosen end
  local tasks, alone = found[1], found[2]
  hold_resources(chosen, slot, found[3])
  redis.call('HSET', key.leases(chosen), slot, cmsgpack.pack({tonumber(seq), tasks}))
  redis.call('PEXPIRE', key.leases(chosen), life_of(chosen))
  serve(chosen)
  if meta[10] then
    note_event(chosen, slot, false, tasks)
    tell_client(chosen)
  end
  return {chosen, meta[8], tonumber(meta[2]), tonumber(meta[9]), alone, tasks, tonumber(meta[11])}, 0
end
