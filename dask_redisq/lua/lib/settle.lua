-- Move on with the long edge lists of accepted tasks: at most about 2,000 edges a script.
-- keys: job settle
--@include edges
--@include ready
--
-- 100,000 edges in one script would stall everyone for 0.2 s. A task with many edges is finished
-- at once, its list is kept here in slices, and each later call of the job counts some.
local EDGES = 2000

local function settle_some(job)
  local meta = redis.call('HMGET', key.job(job), 'state', 'frozen')
  if meta[1] ~= 'running' or meta[2] then return end
  local left = EDGES
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
