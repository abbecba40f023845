-- Make tasks ready, and wake one able, idle slot for each: the only place that does either.
-- keys: queue active slots slot idle wake job ready tagged sets delayed restrict
--@include clock
--@include life
--@include restrict
--
-- A token goes to a slot that is blocked and registered, or it is lost: W1, idle, found a task by
-- its slow re-check and stayed in the idle set; the next token went to busy W1 while W2 slept
-- (96 of 200 in a prototype). So each call takes its caller out of the idle sets first.
local PRIORITY = 2 ^ 40
local TOKEN_LIFE = 600 * 1000

-- Return what a slot carries: the tags of its worker, and the one that its task code set.
local function tags_of(slot)
  local state = redis.call('HMGET', key.slot(slot), 'tags', 'tag')
  local tags = cmsgpack.unpack(state[1])
  if state[2] and state[2] ~= '' then tags[#tags + 1] = state[2] end
  return tags
end

-- Take a slot out of all idle sets.
local function leave_idle(slot)
  if redis.call('HDEL', key.slot(slot), 'idle') == 0 then return end
  for _, tag in ipairs(tags_of(slot)) do redis.call('ZREM', key.idle(tag), slot) end
end

-- Wake up to `count` idle slots that carry `tag` and run `python`; return how many were woken.
local function wake(tag, python, count)
  local woken, passed = 0, 0
  while woken < count do
    local some = tag == python and math.min(count - woken, 100) or 100
    local found = redis.call('ZRANGE', key.idle(tag), passed, passed + some - 1)
    if #found == 0 then break end
    for _, slot in ipairs(found) do
      if woken == count then break end
      if tag ~= python and not redis.call('ZSCORE', key.idle(python), slot) then
        passed = passed + 1 -- it waits for tasks of another Python
      else
        redis.call('ZREM', key.idle(tag), slot)
        if redis.call('SISMEMBER', key.slots(), slot) == 1 then
          leave_idle(slot)
          redis.call('RPUSH', key.wake(slot), '1')
          redis.call('PEXPIRE', key.wake(slot), TOKEN_LIFE)
          woken = woken + 1
        end
      end
    end
  end
  return woken
end

-- Wake this very slot, if it is idle; return how many were woken.
local function wake_slot(slot)
  if not redis.call('HGET', key.slot(slot), 'idle') then return 0 end
  leave_idle(slot)
  redis.call('RPUSH', key.wake(slot), '1')
  redis.call('PEXPIRE', key.wake(slot), TOKEN_LIFE)
  return 1
end

-- Wake a slot for each of `count` tasks under restriction `number` (0: none) of a job.
local function wake_for(job, number, count)
  local meta = redis.call('HMGET', key.job(job), 'python', 'asks', 'sealed')
  local python = meta[1]
  if meta[2] and not meta[3] then return end -- a job with a policy opens when it is sealed
  if number == 0 then
    wake(python, python, count)
    return
  end
  local wanted = read_restriction(job, 'hard:' .. number)
  for _, tag in ipairs(tags_to_wake(wanted)) do
    count = count - wake_slot(tag) -- it may be the name of one
    if count > 0 then count = count - wake(tag, python, count) end
    if count <= 0 then return end
  end
  if wanted.soft then wake(python, python, count) end -- they are told when to look again
end

-- Wake a slot for one task.
local function wake_task(job, task)
  local number = string.byte(redis.call('GETRANGE', key.restrict(job), task, task)) or 0
  wake_for(job, number, 1)
end

-- Wake slots for what is ready of a job, at most `most` for each set.
local function wake_for_sets(job, most)
  local common = redis.call('ZCARD', key.ready(job))
  for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
    local number, tasks = string.match(set, '^hard:(%d+)$'), redis.call('ZCARD', key.tagged(job, set))
    if number then
      wake_for(job, tonumber(number), math.min(most, tasks))
    else
      common = common + tasks
    end
  end
  wake_for(job, 0, math.min(most, common))
end

-- Wake others for what a slot that takes nothing, or is gone, was woken for: `count` tokens.
--
-- W1 pops its token and is stopped in that instant: its task stays ready, and W2 sleeps to its
-- re-check. What a token was for is not known, so each set that holds tasks gets a slot, in vain at
-- worst. A hundred jobs at most, since each of them costs.
local function pass_on(count)
  if count == 0 then return end
  for _, job in ipairs(redis.call('ZRANGE', key.active(), 0, 99)) do
    if redis.call('HGET', key.job(job), 'state') == 'running' then wake_for_sets(job, count) end
  end
end

local function add_to_set(job, set, tasks)
  local name = set == '' and key.ready(job) or key.tagged(job, set)
  for first = 1, #tasks, 1000 do
    local pairs_, n = {}, 0
    for i = first, math.min(first + 999, #tasks) do
      pairs_[n + 1], pairs_[n + 2], n = tasks[i], tasks[i], n + 2
    end
    redis.call('ZADD', name, unpack(pairs_))
  end
  redis.call('PEXPIRE', name, life_of(job))
  if set ~= '' then
    redis.call('ZADD', key.sets(job), 'NX', now_ms(), set)
    redis.call('PEXPIRE', key.sets(job), life_of(job))
  end
end

-- Enter a job among those with ready or delayed tasks, as if it had just been served.
--
-- Not as "never served": a stream of small new jobs would then always come first.
local function activate(job)
  local served = redis.call('HGET', key.queue(), 'serves') or 0
  local priority = redis.call('HGET', key.job(job), 'priority')
  redis.call('ZADD', key.active(), 'NX', served - priority * PRIORITY, job)
  redis.call('PEXPIRE', key.active(), DAY)
end

-- Put unfinished `tasks`, that are in no set and no lease, into a ready set.
--
-- A task sits in exactly one set: that of its restriction, else that of `tag` (the slot
-- which holds its large input; ''), else the common one.
local function make_ready(job, tasks, tag)
  if #tasks == 0 then return end
  local meta = redis.call('HMGET', key.job(job), 'frozen', 'hard:1')
  if meta[1] then return end -- the rebuild under way finds them unfinished
  if meta[2] then
    local sets = {}
    for _, task in ipairs(tasks) do
      local number = string.byte(redis.call('GETRANGE', key.restrict(job), task, task)) or 0
      sets[number] = sets[number] or {}
      table.insert(sets[number], task)
    end
    for number, some in pairs(sets) do
      add_to_set(job, number == 0 and tag or 'hard:' .. number, some)
      wake_for(job, number, #some)
    end
  else
    add_to_set(job, tag, tasks)
    wake_for(job, 0, #tasks - (tag ~= '' and wake_slot(tag) or 0))
  end
  activate(job)
end

-- Take a job off the active list if it has nothing ready, now or later.
local function settle_active(job)
  if redis.call('EXISTS', key.ready(job), key.sets(job), key.delayed(job)) == 0 then
    redis.call('ZREM', key.active(), job)
  end
end
