-- Count the edges of accepted tasks: first decide (reads only), then write.
-- keys: job finished values value wait consumers
--@include numbers
--@include damage
--
-- Edges are facts of the graph and are applied once, when their task is accepted, to unfinished
-- tasks only. A was re-run after its value was lost; B finished long ago; counting A -> B again
-- would wrap B's counter and later make a finished task ready.

-- Return the map `sum` (id -> count) as pairs by rising ids.
local function sorted_pairs(sum)
  local ids, out = {}, {}
  for id in pairs(sum) do ids[#ids + 1] = id end
  table.sort(ids)
  for i, id in ipairs(ids) do out[2 * i - 1], out[2 * i] = id, sum[id] end
  return out
end

-- Return pairs of 1 for the tasks of `lists`, by rising ids.
--
-- Chunks are mostly neighbours by rising ids, and so are lists of what they made: to sort lists is
-- enough then, 0.1 us a task. To sort 1,000 tasks costs 1 us a task.
local function ones_of(lists)
  table.sort(lists, function(a, b) return (a[1] or 0) < (b[1] or 0) end)
  local out, n, last = {}, 0, -1
  for _, list in ipairs(lists) do
    for _, task in ipairs(list) do
      if task <= last then
        local sum = {}
        for _, some in ipairs(lists) do
          for _, one in ipairs(some) do sum[one] = 1 end
        end
        return sorted_pairs(sum)
      end
      out[n + 1], out[n + 2], n, last = task, 1, n + 2, task
    end
  end
  return out
end

-- Decide what `users` (pairs of a task and edges into it) and `inputs` (a task and uses of it),
-- both by rising tasks, come to. `done` holds tasks that this same script is about to finish.
--
-- Counters of finished tasks mean nothing: an inner edge was never counted. So the bits are read
-- for those few that come to 0, and only an unfinished task becomes ready, or shows damage.
local function decide_edges(job, inputs, users, done)
  local wait, consumers = subtract(key.wait(job), users), subtract(key.consumers(job), inputs)
  local finished = read_bits(key.finished(job), wait.zero)
  local damaged = wait.torn or consumers.torn or #consumers.below > 0
  for _, task in ipairs(wait.below) do
    damaged = damaged or not (finished[task] or done[task])
  end
  local ready = {}
  for _, task in ipairs(wait.zero) do
    if not finished[task] and not done[task] then ready[#ready + 1] = task end
  end
  return {wait = wait, consumers = consumers, ready = ready, damaged = damaged}
end

-- Drop the values of tasks that nobody needs any more.
local function free_values(job, tasks)
  if #tasks == 0 then return end
  local big = redis.call('HEXISTS', key.job(job), 'big') == 1
  for first = 1, #tasks, 1000 do
    local last = math.min(first + 999, #tasks)
    if big then
      for i, record in ipairs(redis.call('HMGET', key.values(job), unpack(tasks, first, last))) do
        if record and string.sub(record, 1, 1) == 'e' then
          redis.call('UNLINK', key.value(job, tasks[first + i - 1], string.sub(record, 2, 25)))
        end
      end
    end
    redis.call('HDEL', key.values(job), unpack(tasks, first, last))
  end
end

-- Write what decide_edges gave; return the tasks that became ready, by rising numbers.
local function write_edges(job, edges)
  if edges.damaged then mark_damaged(job, false) end
  write_counters(key.wait(job), edges.wait)
  write_counters(key.consumers(job), edges.consumers)
  return edges.ready
end
