-- Move on with the long edge lists of accepted tasks: at most about 2,000 edges a script.
-- keys: job settle
--@include edges
--@include ready
--
-- 100,000 edges in one script would stall everyone for 0.2 s. A task with many edges is finished
-- at once, its list is kept here in slices, and each later call of the job counts some.
local SETTLED = 2000 -- edges of one call

-- Do so for a job that runs, and is not frozen.
local function settle_edges(job)
  local left = SETTLED
  while left > 0 do
    local slice = redis.call('LPOP', key.settle(job))
    if not slice then return end
    local inputs, users, tag = unpack(cmsgpack.unpack(slice))
    local edges = decide_edges(job, inputs, users, {})
    local ready = write_edges(job, edges)
    free_values(job, edges.consumers.zero)
    make_ready(job, ready, tag)
    left = left - (#inputs + #users) / 2
  end
end

local function settle_some(job)
  local meta = redis.call('HMGET', key.job(job), 'state', 'frozen')
  if meta[1] == 'running' and not meta[2] then settle_edges(job) end
end
