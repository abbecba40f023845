-- Compare some tasks of some jobs with their counts: what does not fit has to be rebuilt.
-- keys: monitor workers jobs job edges finished wait consumers ready tagged sets delayed leases parked settle slots slot
-- args: who interval
-- returns: msgpack {blocks that were compared, {job, what is wrong with it, job, ...}}
--@include full
--@include look
--@include numbers
--@include damage
--@include held_lease
--
-- doRedis's queued + started + finished = total, of which it says that a fault in any part of it
-- is lost work: here for each task. One that is not finished, and waits for nothing, is ready, or
-- leased, or delayed, or parked: else nobody would ever run it. And its count is that of its inputs.
--
-- One look per interval for the whole queue (lib/look.lua), at a few blocks of a few jobs that are
-- older than the interval; all have their turn. While edges are left to count, counters are
-- behind, and that is right.
local JOBS = 10
local BLOCKS = 4 -- 1 ms with 3 inputs a task

-- Return the set of tasks that are somewhere besides the common ready set.
local function placed_tasks(job)
  local placed = {}
  local function place(tasks)
    for _, task in ipairs(tasks) do placed[tonumber(task)] = true end
  end
  local leases = redis.call('HGETALL', key.leases(job))
  for i = 1, #leases, 2 do
    local lease = cmsgpack.unpack(leases[i + 1])
    if is_held_lease(job, leases[i], lease[1]) then place(lease[2]) end
  end
  for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
    place(redis.call('ZRANGE', key.tagged(job, set), 0, -1))
  end
  place(redis.call('ZRANGE', key.delayed(job), 0, -1))
  place(redis.call('SMEMBERS', key.parked(job)))
  return placed
end

-- Return what is wrong with a block of tasks, or nil; `settled`: all edges are counted.
local function check_block(job, number, size, placed, settled)
  local packed = redis.call('HGET', key.edges(job), number)
  if not packed then return nil end -- without the graph nothing can be said, nor repaired
  local inputs, asked, tasks = cmsgpack.unpack(packed)[1], {}, {}
  for i, its in ipairs(inputs) do
    tasks[i] = number * size + i - 1
    asked[#asked + 1] = tasks[i]
    for _, input in ipairs(its) do asked[#asked + 1] = input end
  end
  local finished, waits = read_bits(key.finished(job), asked), read_counters(key.wait(job), tasks)
  for i, task in ipairs(tasks) do
    if not finished[task] then
      local open = 0
      for _, input in ipairs(inputs[i]) do
        if not finished[input] then open = open + 1 end
      end
      if settled and waits[i] ~= open then
        return 'task ' .. task .. ' waits for ' .. waits[i] .. ' inputs, and ' .. open .. ' are not finished'
      end
      if waits[i] == 0 and not placed[task] and not redis.call('ZSCORE', key.ready(job), task) then
        return 'task ' .. task .. ' waits for nothing, and is neither ready nor leased'
      end
    end
  end
end

-- Compare the next blocks of a job; return how many, and what is wrong.
local function check_job(job)
  local meta = redis.call('HMGET', key.job(job),
    'state', 'sealed', 'frozen', 'damaged', 'n', 'block', 'blocks', 'finished', 'audited')
  if meta[1] ~= 'running' or not meta[2] or meta[3] or meta[4] then return 0 end
  local counted = redis.call('BITCOUNT', key.finished(job))
  if counted ~= tonumber(meta[8]) then
    return 0, meta[8] .. ' tasks are said to be finished, and ' .. counted .. ' are'
  end
  for _, name in ipairs({key.wait(job), key.consumers(job)}) do
    if redis.call('STRLEN', name) ~= 4 * tonumber(meta[5]) then return 0, 'counters are torn' end
  end
  local blocks, first = tonumber(meta[7]), tonumber(meta[9] or 0)
  local some = math.min(BLOCKS, blocks)
  local placed, settled = placed_tasks(job), redis.call('EXISTS', key.settle(job)) == 0
  redis.call('HSET', key.job(job), 'audited', (first + some) % blocks)
  for i = 0, some - 1 do
    local number = (first + i) % blocks
    -- It only reads; what it reads may be no graph, whoever wrote that.
    local read, wrong = pcall(check_block, job, number, tonumber(meta[6]), placed, settled)
    if not read then wrong = 'the graph of block ' .. number .. ' cannot be read' end
    if wrong then return some, wrong end
  end
  return some
end

write_when_full()
if looked_lately('audit', arg.who, arg.interval) then return cmsgpack.pack({0, {}}) end
local first = tonumber(redis.call('HGET', key.monitor(), 'next job') or 0)
local jobs = redis.call('ZRANGE', key.jobs(), first, first + JOBS - 1, 'WITHSCORES')
redis.call('HSET', key.monitor(), 'next job', #jobs == 2 * JOBS and first + JOBS or 0)
local total, damaged = 0, {}
for i = 1, #jobs, 2 do
  if now_ms() - jobs[i + 1] >= tonumber(arg.interval) then
    local blocks, wrong = check_job(jobs[i])
    total = total + blocks
    if wrong then
      mark_damaged(jobs[i], false)
      damaged[#damaged + 1] = jobs[i]
      damaged[#damaged + 1] = wrong
    end
  end
end
return cmsgpack.pack({total, damaged})
