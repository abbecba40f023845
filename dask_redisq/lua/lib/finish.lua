-- Accept the components of a batch, each whole or not at all: decide, then write.
-- keys: queue job finished values value consumers ready tagged sets delayed leases log alone parked tries settle
--@include edges
--@include ready
--
-- Component: the tasks of one lease that are linked by values passed inside it. W1 ran A and B
-- (A -> B) in one lease and was presumed dead; W2 ran A again, and another user of A saw that
-- result. Were W1's B accepted without its A, one answer would hold two runs of A.
--
-- A batch is {groups, inputs, users}. Its inputs and users are pairs {task, edges, ...} by rising
-- tasks: the edges of all groups together, so that a batch accepted whole, as nearly every one
-- is, costs the server no sum. A group is a list; its fields by place:
--   KIND 0: each task is a component of its own; 1: all tasks are one component
--   TASKS, VALUES: a value is its pickle, or the size of one stored apart
--   OUTPUTS: tasks that the client waits for
--   EDGES: packed. Kind 0: {count, inputs, users, ...}, for so many tasks in turn each the edges
--     of one, as tasks. Kind 1: {inputs, users}, as pairs, to tasks outside the component
-- and of kind 1:
--   PUBLISHED: the tasks that VALUES are of; USES: how often each is used inside the component
--   MORE: further edges, as slices for settle
local KIND, TASKS, VALUES, OUTPUTS, EDGES, PUBLISHED, USES, MORE = 1, 2, 3, 4, 5, 6, 7, 8
local ATTEMPT = 24

local function value_seen(job, task, value, attempt)
  return type(value) == 'string' or redis.call('EXISTS', key.value(job, task, attempt)) == 1
end

-- Call `visit(i, inputs, users)` for each task of a group of kind 0.
local function each_lone(group, visit)
  local runs, i = cmsgpack.unpack(group[EDGES]), 0
  for run = 1, #runs, 3 do
    for _ = 1, runs[run] do
      i = i + 1
      visit(i, runs[run + 1], runs[run + 2])
    end
  end
end

-- Note the users of values that are stored apart: this slot is near to what they need.
local function note_large(plan, group)
  local large = {}
  for i, value in ipairs(group[VALUES]) do
    if type(value) ~= 'string' then large[i] = true end
  end
  if not next(large) then return end
  plan.big = true
  if group[KIND] == 1 then
    local users = cmsgpack.unpack(group[EDGES])[2]
    for i = 1, #users, 2 do plan.large_input[users[i]] = true end
    return
  end
  each_lone(group, function(i, _, users)
    if large[i] then
      for _, user in ipairs(users) do plan.large_input[user] = true end
    end
  end)
end

local function note_outputs(plan, group)
  local done, told, outputs, n = plan.done, plan.told, plan.outputs, #plan.outputs
  for _, task in ipairs(group[OUTPUTS]) do
    if done[task] and not told[task] then
      n = n + 1
      told[task], outputs[n] = true, task
    end
  end
end

-- Each task by itself. Most chunks are one such group: no table is made, no function called per task.
local function decide_lone(job, plan, group, attempt)
  local names, values, brought = plan.names, plan.values, group[VALUES]
  local finished, done, accepted = plan.finished, plan.done, plan.accepted
  local n, m = #names, #accepted
  for i, task in ipairs(group[TASKS]) do
    local value = brought[i]
    local open = not finished[task] and not done[task]
    if open and (type(value) == 'string' or value_seen(job, task, value, attempt)) then
      n, m = n + 1, m + 1
      done[task], accepted[m], names[n], values[n] = true, task, task, value
    else
      if open then plan.unseen[#plan.unseen + 1] = task end
      plan.refused[#plan.refused + 1] = task
      plan.out[group] = plan.out[group] or {}
      plan.out[group][i] = true
    end
  end
end

local function acceptable(job, plan, group, attempt)
  local named = {}
  for _, task in ipairs(group[TASKS]) do
    if plan.finished[task] or plan.done[task] or named[task] then return false end
    named[task] = true
  end
  for i, task in ipairs(group[PUBLISHED]) do
    if not value_seen(job, task, group[VALUES][i], attempt) then
      plan.unseen[#plan.unseen + 1] = task
      return false
    end
  end
  return true
end

local function decide_component(job, plan, group, attempt)
  if not acceptable(job, plan, group, attempt) then
    for _, task in ipairs(group[TASKS]) do plan.refused[#plan.refused + 1] = task end
    plan.out[group] = true
    return
  end
  local done, accepted, n = plan.done, plan.accepted, #plan.accepted
  for i, task in ipairs(group[TASKS]) do done[task], accepted[n + i] = true, task end
  for i, task in ipairs(group[PUBLISHED]) do
    local n = #plan.names + 1
    plan.names[n], plan.values[n] = task, group[VALUES][i]
    plan.inside[task] = group[USES][i]
  end
  for _, slice in ipairs(group[MORE]) do plan.more[#plan.more + 1] = slice end
end

local function add(sum, task, count) sum[task] = (sum[task] or 0) + count end

local function add_pairs(sum, pairs_)
  for i = 1, #pairs_, 2 do add(sum, pairs_[i], pairs_[i + 1]) end
end

-- Return the inputs and users of the accepted components of a batch that was refused in part.
--
-- None accepted, none counted: a count of 0 would find a user at 0 and make it ready again.
local function sum_accepted(plan, groups)
  local inputs, users = {}, {}
  for _, group in ipairs(groups) do
    local out = plan.out[group] or {}
    if group[KIND] == 0 then
      each_lone(group, function(i, its_inputs, its_users)
        if not out[i] then
          for _, task in ipairs(its_inputs) do add(inputs, task, 1) end
          for _, task in ipairs(its_users) do add(users, task, 1) end
        end
      end)
    elseif out ~= true then
      local edges = cmsgpack.unpack(group[EDGES])
      add_pairs(inputs, edges[1])
      add_pairs(users, edges[2])
      for i, task in ipairs(group[PUBLISHED]) do
        if group[USES][i] > 0 then add(inputs, task, group[USES][i]) end
      end
    end
  end
  return sorted_pairs(inputs), sorted_pairs(users)
end

-- Read how often the values of these tasks, stored apart, were gone before they could count.
--
-- A value that expires between its SET and its step on every try would be made again for ever.
-- So these are counted like deaths, and the task gets a name. Returns the worst one, or nil.
local function worst_unseen(job, tasks)
  local worst
  for _, task in ipairs(tasks) do
    local count = tonumber(redis.call('HGET', key.tries(job), 'unseen:' .. task) or 0) + 1
    if not worst or count > worst.count then worst = {task = task, count = count} end
  end
  if worst then worst.over = worst.count >= tonumber(redis.call('HGET', key.job(job), 'allowed')) end
  return worst
end

local function count_unseen(job, tasks)
  for _, task in ipairs(tasks) do redis.call('HINCRBY', key.tries(job), 'unseen:' .. task, 1) end
  redis.call('PEXPIRE', key.tries(job), life_of(job))
end

local function all_tasks(groups)
  if #groups == 1 then return groups[1][TASKS] end
  local tasks, n = {}, 0
  for _, group in ipairs(groups) do
    for i, task in ipairs(group[TASKS]) do tasks[n + i] = task end
    n = n + #group[TASKS]
  end
  return tasks
end

-- Read everything, write nothing: what of `batch` is accepted, and what follows from it.
local function decide_batch(job, batch, attempt)
  local groups, inputs, users = batch[1], batch[2], batch[3]
  local plan = {
    finished = read_bits(key.finished(job), all_tasks(groups)), done = {}, accepted = {}, refused = {}, unseen = {},
    out = {}, inside = {}, names = {}, values = {}, outputs = {}, told = {}, more = {},
    large_input = {}, big = false,
  }
  for _, group in ipairs(groups) do
    if group[KIND] == 0 then
      decide_lone(job, plan, group, attempt)
    else
      decide_component(job, plan, group, attempt)
    end
    if plan.out[group] ~= true then note_outputs(plan, group) end
    note_large(plan, group)
  end
  if #plan.refused > 0 then inputs, users = sum_accepted(plan, groups) end
  plan.edges = decide_edges(job, inputs, users, plan.done)
  plan.uses = read_counters(key.consumers(job), plan.names)
  return plan
end

-- Remove accepted tasks from ready sets and from the leases of others.
--
-- Only for a batch whose lease was taken back, all or some of it: its tasks may be anywhere by now.
local function evict(job, plan)
  local sets = redis.call('ZRANGE', key.sets(job), 0, -1)
  for _, task in ipairs(plan.accepted) do
    redis.call('ZREM', key.ready(job), task)
    redis.call('ZREM', key.delayed(job), task)
    for _, set in ipairs(sets) do
      redis.call('ZREM', key.tagged(job, set), task)
      if redis.call('EXISTS', key.tagged(job, set)) == 0 then
        redis.call('ZREM', key.sets(job), set)
      end
    end
  end
  local leases = redis.call('HGETALL', key.leases(job))
  for i = 1, #leases, 2 do
    local lease, left = cmsgpack.unpack(leases[i + 1]), {}
    for _, task in ipairs(lease[2]) do
      if not plan.done[task] then left[#left + 1] = task end
    end
    if #left < #lease[2] then
      redis.call('HSET', key.leases(job), leases[i], cmsgpack.pack({lease[1], left, lease[3]}))
    end
  end
  settle_active(job)
end

-- Keep the published values that somebody still needs; drop the others at once.
local function keep_values(job, plan, attempt)
  local fields, n, life = {}, 0, life_of(job)
  local values, uses, inside, inline = plan.values, plan.uses, plan.inside, 'i' .. attempt
  for i, task in ipairs(plan.names) do
    local value = values[i]
    local apart = type(value) ~= 'string'
    if uses[i] > (inside[task] or 0) then
      if apart then redis.call('PEXPIRE', key.value(job, task, attempt), life) end
      fields[n + 1] = task
      fields[n + 2] = (apart and 'e' .. attempt or inline) .. value
      n = n + 2
      if n >= 1000 then
        redis.call('HSET', key.values(job), unpack(fields))
        fields, n = {}, 0
      end
    elseif apart then
      redis.call('UNLINK', key.value(job, task, attempt))
    end
  end
  if n > 0 then redis.call('HSET', key.values(job), unpack(fields)) end
  redis.call('PEXPIRE', key.values(job), life)
end

-- Delete refused values that were stored apart, unless they are the accepted ones.
--
-- W1's step was accepted, its reply was lost, W1 was presumed dead; it sends the step again:
-- "finished already, drop it" must not delete the value that won.
local function drop_refused(job, groups, plan, attempt)
  for _, group in ipairs(groups) do
    local tasks = group[KIND] == 0 and group[TASKS] or group[PUBLISHED]
    for i, task in ipairs(tasks) do
      if type(group[VALUES][i]) ~= 'string' and not plan.done[task] then
        local record = redis.call('HGET', key.values(job), task)
        if not record or string.sub(record, 2, 1 + ATTEMPT) ~= attempt then
          redis.call('UNLINK', key.value(job, task, attempt))
        end
      end
    end
  end
end

-- Write what decide_batch gave. `whole`: the lease is still the slot's, with all its tasks.
-- Returns tasks now ready: {free = any slot's, near = this slot's}. `plan.total` is how many tasks of the job are
-- finished, if this changed it.
local function write_batch(job, plan, attempt, whole)
  local ready = {free = {}, near = {}}
  if #plan.accepted == 0 then return ready end
  if not whole then evict(job, plan) end
  if set_bits(key.finished(job), plan.accepted) then redis.call('PEXPIRE', key.finished(job), life_of(job)) end
  plan.total = redis.call('HINCRBY', key.job(job), 'finished', #plan.accepted)
  redis.call('HINCRBY', key.queue(), 'finished', #plan.accepted)
  if plan.big then redis.call('HSET', key.job(job), 'big', '1') end
  if redis.call('EXISTS', key.alone(job), key.parked(job)) > 0 then
    for _, task in ipairs(plan.accepted) do
      redis.call('SREM', key.alone(job), task)
      redis.call('SREM', key.parked(job), task)
    end
  end
  keep_values(job, plan, attempt)
  local zero = write_edges(job, plan.edges)
  free_values(job, plan.edges.consumers.zero)
  if #plan.more > 0 then
    for _, slice in ipairs(plan.more) do redis.call('RPUSH', key.settle(job), slice) end
    redis.call('PEXPIRE', key.settle(job), life_of(job))
  end
  if #plan.outputs > 0 then
    if redis.call('RPUSH', key.log(job), cmsgpack.pack(plan.outputs)) == 1 then
      redis.call('PEXPIRE', key.log(job), life_of(job))
    end
  end
  if not next(plan.large_input) then return {free = zero, near = {}} end
  for _, task in ipairs(zero) do
    table.insert(plan.large_input[task] and ready.near or ready.free, task)
  end
  return ready
end
