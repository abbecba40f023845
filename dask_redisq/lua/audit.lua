-- Check some blocks of a job against what must hold of it; what does not is rebuilt.
-- keys: audit job edges finished wait consumers ready tagged sets delayed leases parked settle
-- args: who interval job
-- returns: msgpack {blocks that were checked, what was wrong, or ''}
--@include full
--@include look
--@include numbers
--@include damage
--
-- doRedis's queued + started + finished = total, of which it says that a fault in any part of it
-- is lost work: here for each task. One that is not finished, and waits for nothing, is ready, or
-- leased, or delayed, or parked: else nobody would ever run it. And its count is that of its inputs.
--
-- One look per interval at each job that is older, and at a few blocks, in turn. While edges are left to count,
-- counters are behind, and that is right.
local SOME = 4 -- blocks, 1 ms with 3 inputs a task
local job = arg.job
local meta = redis.call('HMGET', key.job(job),
  'state', 'sealed', 'frozen', 'damaged', 'n', 'block', 'blocks', 'finished', 'audited')
if meta[1] ~= 'running' or not meta[2] or meta[3] or meta[4] then return cmsgpack.pack({0, ''}) end
write_when_full()
if looked_lately(key.audit(job), arg.who, arg.interval, true) then return cmsgpack.pack({0, ''}) end
local n, size, blocks = tonumber(meta[5]), tonumber(meta[6]), tonumber(meta[7])
local settled = redis.call('EXISTS', key.settle(job)) == 0

-- Tasks that are somewhere besides the common ready set.
local placed = {}
local function place(tasks)
  for _, task in ipairs(tasks) do placed[tonumber(task)] = true end
end
for _, packed in ipairs(redis.call('HVALS', key.leases(job))) do place(cmsgpack.unpack(packed)[2]) end
for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
  place(redis.call('ZRANGE', key.tagged(job, set), 0, -1))
end
place(redis.call('ZRANGE', key.delayed(job), 0, -1))
place(redis.call('SMEMBERS', key.parked(job)))

local function check_block(number)
  local packed = redis.call('HGET', key.edges(job), number)
  if not packed then return end -- without the graph nothing can be said, nor repaired
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

local function check()
  local counted = redis.call('BITCOUNT', key.finished(job))
  if counted ~= tonumber(meta[8]) then
    return meta[8] .. ' tasks are said to be finished, and ' .. counted .. ' are'
  end
  for _, name in ipairs({key.wait(job), key.consumers(job)}) do
    if redis.call('STRLEN', name) ~= 4 * n then return 'counters are torn' end
  end
  local first = tonumber(meta[9] or 0)
  redis.call('HSET', key.job(job), 'audited', (first + SOME) % blocks)
  for i = 0, math.min(SOME, blocks) - 1 do
    local wrong = check_block((first + i) % blocks)
    if wrong then return wrong end
  end
end
local wrong = check()
if wrong then mark_damaged(job, false) end
return cmsgpack.pack({math.min(SOME, blocks), wrong or ''})
