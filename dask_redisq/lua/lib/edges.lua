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
    local some = {}
    for i = first, math.min(first + 999, #tasks) do some[#some + 1] = tasks[i] end
    if big then
      for i, record in ipairs(redis.call('HMGET', key.values(job), unpack(some))) do
        if record and string.sub(record, 1, 1) == 'e' then
          redis.call('UNLINK', key.value(job, some[i], string.sub(record, 2, 25)))
        end
      end
    end
    redis.call('HDEL', key.values(job), unpack(some))
  end
end

-- Write what decide_edges gave; return the tasks that became ready, by rising numbers.
local function write_edges(job, edges)
  if edges.damaged then mark_damaged(job, false) end
  write_counters(key.wait(job), edges.wait)
  write_counters(key.consumers(job), edges.consumers)
  return edges.ready
end
