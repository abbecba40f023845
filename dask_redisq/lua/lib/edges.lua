-- Count the edges of accepted tasks: first decide (reads only), then write.
-- keys: job finished values value wait consumers
--@include numbers
--
-- Edges are facts of the graph and are applied once, when their task is accepted, to unfinished
-- tasks only. A was re-run after its value was lost; B finished long ago; counting A -> B again
-- would wrap B's counter and later make a finished task ready.

local function ids_of(map)
  local ids, n = {}, 0
  for id in pairs(map) do
    n = n + 1
    ids[n] = id
  end
  return ids
end

-- Take `pairs_` = {id, count, id, count, ...} times `factor` into the map `sum`.
local function add_pairs(sum, pairs_, factor)
  for i = 1, #pairs_, 2 do
    sum[pairs_[i]] = (sum[pairs_[i]] or 0) + factor * pairs_[i + 1]
  end
end

-- Subtract the map `minus` from the counters under `name`; `damaged` if one would go below 0.
local function subtract(name, minus)
  local ids = ids_of(minus)
  local values, zero, damaged = read_counters(name, ids), {}, false
  for i, id in ipairs(ids) do
    local left = values[i] - minus[id]
    if left < 0 then damaged, left = true, 0 end
    values[i] = left
    if left == 0 then zero[#zero + 1] = id end
  end
  return {ids = ids, values = values, zero = zero, damaged = damaged}
end

-- Decide what `users` (task -> edges into it) and `inputs` (task -> uses of it) come to.
--
-- `done` holds tasks that this same script is about to finish.
local function decide_edges(job, inputs, users, done)
  local open = {}
  local ids = ids_of(users)
  local finished = read_bits(key.finished(job), ids)
  for _, id in ipairs(ids) do
    if not finished[id] and not done[id] then open[id] = users[id] end
  end
  return {wait = subtract(key.wait(job), open), consumers = subtract(key.consumers(job), inputs)}
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

-- Write what decide_edges gave; return the tasks that became ready.
local function write_edges(job, edges)
  if edges.wait.damaged or edges.consumers.damaged then
    redis.call('HSET', key.job(job), 'damaged', '1')
  end
  write_counters(key.wait(job), edges.wait.ids, edges.wait.values)
  write_counters(key.consumers(job), edges.consumers.ids, edges.consumers.values)
  return edges.wait.zero
end
