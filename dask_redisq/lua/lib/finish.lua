-- Accept the components of a batch, each whole or not at all: decide, then write.
-- keys: queue job finished values value consumers ready tagged sets leases log alone settle
--@include edges
--@include ready
--
-- Component: the tasks of one lease that are linked by values passed inside it. W1 ran A and B
-- (A -> B) in one lease and was presumed dead; W2 ran A again, and another user of A saw that
-- result. Were W1's B accepted without its A, one answer would hold two runs of A.
--
-- A group is {kind, tasks, inputs, users, published, values, uses, outputs, more}:
--   kind 0: each task is a component of its own, all with the same edges (a fan-out is one group)
--   kind 1: all tasks are one component
--   inputs, users: {task, edges, ...} to tasks outside the component
--   published, values: the tasks with a value, and it; a number is the size of one stored apart
--   uses: how often each published value was used inside the component
--   outputs: tasks that the client waits for; more: further edges, as slices for settle
local ATTEMPT = 24

local function value_seen(job, task, value, attempt)
  return type(value) == 'string' or redis.call('EXISTS', key.value(job, task, attempt)) == 1
end

local function accept_task(plan, task)
  plan.done[task] = true
  plan.accepted[#plan.accepted + 1] = task
end

-- Note an accepted value. One that is stored apart draws the tasks that need it to this slot.
local function publish(plan, group, task, value)
  local n = #plan.names + 1
  plan.names[n], plan.values[n] = task, value
  if type(value) ~= 'string' then
    plan.big = true
    for i = 1, #group[4], 2 do plan.large_input[group[4][i]] = true end
  end
end

-- Each task by itself. Most chunks are one such group, so no table is made per task.
local function decide_lone(job, plan, group, attempt)
  local values, before = group[6], #plan.accepted
  for i, task in ipairs(group[2]) do
    local value = values[i]
    if not plan.finished[task] and not plan.done[task] and value_seen(job, task, value, attempt) then
      accept_task(plan, task)
      publish(plan, group, task, value)
      if group[8] == 1 then plan.outputs[#plan.outputs + 1] = task end
    else
      plan.refused[#plan.refused + 1] = task
    end
  end
  -- None accepted, none counted: a count of 0 would find a user at 0 and make it ready again.
  local accepted = #plan.accepted - before
  if accepted > 0 then
    add_pairs(plan.inputs, group[3], accepted)
    add_pairs(plan.users, group[4], accepted)
  end
end

local function acceptable(job, plan, group, attempt)
  for _, task in ipairs(group[2]) do
    if plan.finished[task] or plan.done[task] then return false end
  end
  for i, task in ipairs(group[5]) do
    if not value_seen(job, task, group[6][i], attempt) then return false end
  end
  return true
end

local function decide_component(job, plan, group, attempt)
  if not acceptable(job, plan, group, attempt) then
    for _, task in ipairs(group[2]) do plan.refused[#plan.refused + 1] = task end
    return
  end
  for _, task in ipairs(group[2]) do accept_task(plan, task) end
  for i, task in ipairs(group[5]) do
    publish(plan, group, task, group[6][i])
    if group[7][i] > 0 then plan.inputs[task] = (plan.inputs[task] or 0) + group[7][i] end
  end
  add_pairs(plan.inputs, group[3], 1)
  add_pairs(plan.users, group[4], 1)
  for _, task in ipairs(group[8]) do plan.outputs[#plan.outputs + 1] = task end
  for _, slice in ipairs(group[9]) do plan.more[#plan.more + 1] = slice end
end

-- Read everything, write nothing: what of `groups` is accepted, and what follows from it.
local function decide_batch(job, groups, attempt)
  local named = {}
  for _, group in ipairs(groups) do
    for _, task in ipairs(group[2]) do named[#named + 1] = task end
  end
  local plan = {
    finished = read_bits(key.finished(job), named), done = {}, accepted = {}, refused = {},
    inputs = {}, users = {}, names = {}, values = {}, outputs = {}, more = {},
    large_input = {}, big = false,
  }
  for _, group in ipairs(groups) do
    if group[1] == 0 then
      decide_lone(job, plan, group, attempt)
    else
      decide_component(job, plan, group, attempt)
    end
  end
  plan.edges = decide_edges(job, plan.inputs, plan.users, plan.done)
  plan.uses = read_counters(key.consumers(job), plan.names)
  return plan
end

-- Remove accepted tasks from ready sets and from the leases of others.
--
-- Only for a batch whose lease was taken back: then its tasks may be anywhere by now.
local function evict(job, plan)
  local sets = redis.call('ZRANGE', key.sets(job), 0, -1)
  for _, task in ipairs(plan.accepted) do
    redis.call('ZREM', key.ready(job), task)
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
      redis.call('HSET', key.leases(job), leases[i], cmsgpack.pack({lease[1], left}))
    end
  end
  settle_active(job)
end

-- Keep the published values that somebody still needs; drop the others at once.
local function keep_values(job, plan, attempt)
  local fields, n, inside = {}, 0, plan.inputs
  for i, task in ipairs(plan.names) do
    local value = plan.values[i]
    local apart = type(value) ~= 'string'
    if plan.uses[i] > (inside[task] or 0) then
      if apart then redis.call('PEXPIRE', key.value(job, task, attempt), DAY) end
      fields[n + 1] = task
      fields[n + 2] = (apart and 'e' or 'i') .. attempt .. value
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
end

-- Delete refused values that were stored apart, unless they are the accepted ones.
--
-- W1's step was accepted, its reply was lost, W1 was presumed dead; it sends the step again:
-- "finished already, drop it" must not delete the value that won.
local function drop_refused(job, groups, plan, attempt)
  for _, group in ipairs(groups) do
    local tasks = group[1] == 0 and group[2] or group[5]
    for i, task in ipairs(tasks) do
      if type(group[6][i]) ~= 'string' and not plan.done[task] then
        local record = redis.call('HGET', key.values(job), task)
        if not record or string.sub(record, 2, 1 + ATTEMPT) ~= attempt then
          redis.call('UNLINK', key.value(job, task, attempt))
        end
      end
    end
  end
end

-- Write what decide_batch gave. Returns tasks now ready: {free = any slot's, near = this slot's}.
local function write_batch(job, plan, attempt, current)
  local ready = {free = {}, near = {}}
  if #plan.accepted == 0 then return ready end
  if not current then evict(job, plan) end
  set_bits(key.finished(job), plan.accepted)
  redis.call('HINCRBY', key.job(job), 'finished', #plan.accepted)
  redis.call('HINCRBY', key.queue(), 'finished', #plan.accepted)
  if plan.big then redis.call('HSET', key.job(job), 'big', '1') end
  if redis.call('EXISTS', key.alone(job)) == 1 then
    for _, task in ipairs(plan.accepted) do redis.call('SREM', key.alone(job), task) end
  end
  keep_values(job, plan, attempt)
  local zero = write_edges(job, plan.edges)
  free_values(job, plan.edges.consumers.zero)
  for _, slice in ipairs(plan.more) do redis.call('RPUSH', key.settle(job), slice) end
  if #plan.outputs > 0 then redis.call('RPUSH', key.log(job), cmsgpack.pack(plan.outputs)) end
  for _, task in ipairs(zero) do
    table.insert(plan.large_input[task] and ready.near or ready.free, task)
  end
  return ready
end
