-- Take what a policy wished, as far as it is ready: it wishes, the engine takes (rule 19).
-- keys: job ready tagged sets alone
--@include ready
--
-- Wishes are of a moment ago, and of a user's making. W1's policy wishes A, W2 is leased A, or finishes
-- it; W1 comes with its wish: were it believed, A would be leased twice, or run after its end.

-- Milliseconds for which the first task of a ready set may be passed over by wishes.
local PASSED_OVER = 5000

-- The key of a ready set; '' is the common one.
local function set_name(job, set)
  return set == '' and key.ready(job) or key.tagged(job, set)
end

-- All sets at which a slot may look, in order: see `order_sets`.
local function in_order(first, last)
  local sets = {}
  for _, set in ipairs(first) do sets[#sets + 1] = set end
  sets[#sets + 1] = ''
  for _, set in ipairs(last) do sets[#sets + 1] = set end
  return sets
end

-- After something was taken from a tagged set; one that its own slots serve does not grow old.
local function note_served(job, set, own)
  if redis.call('EXISTS', key.tagged(job, set)) == 0 then
    redis.call('ZREM', key.sets(job), set)
  elseif own then
    redis.call('ZADD', key.sets(job), 'XX', now_ms(), set)
  end
end

-- Return a set whose first task was passed over for too long, or nil; note which ones are first now.
local function passed_over(job, sets)
  local now = now_ms()
  for _, set in ipairs(sets) do
    local first = redis.call('ZRANGE', set_name(job, set), 0, 0)[1]
    local noted = first and redis.call('HGET', key.job(job), 'passed:' .. set) or ''
    local task, since = string.match(noted, '^(%d+) (%d+)$')
    if first and task == first and now - since >= PASSED_OVER then return set end
    if first and task ~= first then
      redis.call('HSET', key.job(job), 'passed:' .. set, first .. ' ' .. string.format('%d', now))
    end
  end
end

-- Take up to `count` of the wished tasks, all from one set, since a lease holds the resources of one;
-- one that must run alone only by itself. Returns {tasks, alone, set}, or nil if none is ready.
local function take_wished(job, sets, wished, count, careful)
  local tasks, alone, chosen = {}, 0, nil
  for _, task in ipairs(wished) do
    if #tasks == count or alone == 1 then break end
    local lonely = careful and redis.call('SISMEMBER', key.alone(job), task) == 1
    if not lonely or #tasks == 0 then
      for _, set in ipairs(chosen and {chosen} or sets) do
        if redis.call('ZREM', set_name(job, set), task) == 1 then
          tasks[#tasks + 1], chosen = task, set
          if lonely then alone = 1 end
          break
        end
      end
    end
  end
  if #tasks == 0 then return nil end
  return {tasks, alone, chosen ~= '' and chosen or nil}
end

-- Return job -> what its policy wished, and the jobs whose policy did not end; as step.lua takes it.
local function read_wishes(packed)
  local told, wishes, endless = cmsgpack.unpack(packed), {}, {}
  for i = 1, #told, 2 do
    local wished = {}
    for _, task in ipairs(told[i + 1] or {}) do wished[#wished + 1] = tonumber(task) end
    if told[i + 1] == false then endless[#endless + 1] = told[i] end
    wishes[told[i]] = wished
  end
  return wishes, endless
end
