-- Give the client of a job what finished since it last asked; its question is the receipt of the last answer.
-- keys: job log values consumers client leases settle ready sets delayed
-- args: job cursor limit client_lease
-- returns: msgpack {state, error, finished, next cursor, task, record, task, record, ...}
--@include settle
--@include ending
--@include expire
--
-- Sending is not freeing: the reply may be lost. Entries before `cursor` have arrived, so their
-- values go now. A client that gets nothing is entered as waiting; whoever appends wakes it.
local job, cursor = arg.job, tonumber(arg.cursor)
local meta = redis.call('HMGET', key.job(job), 'state', 'error', 'acked', 'sealed', 'finished', 'n', 'damaged')
if not meta[1] then return cmsgpack.pack({'', '', 0, cursor}) end
redis.call('SET', key.client(job), '1', 'PX', arg.client_lease)

local acked = tonumber(meta[3])
if cursor > acked then
  local delivered = {}
  for _, entry in ipairs(redis.call('LRANGE', key.log(job), acked, cursor - 1)) do
    for _, task in ipairs(cmsgpack.unpack(entry)) do delivered[task] = 1 end
  end
  local edges = decide_edges(job, sorted_pairs(delivered), {}, {})
  write_edges(job, edges)
  free_values(job, edges.consumers.zero)
  redis.call('HSET', key.job(job), 'acked', cursor)
end
settle_some(job)
end_if_done(job)

-- Nothing ready, nothing leased, nothing to count, and still not finished: a count is wrong.
local state, reason = unpack(redis.call('HMGET', key.job(job), 'state', 'error'))
if state == 'running' then
  local stuck = meta[4] and redis.call('EXISTS', key.ready(job), key.sets(job), key.delayed(job), key.leases(job),
    key.settle(job)) == 0
  if meta[7] or stuck then
    end_job(job, 'failed', cmsgpack.pack({'damaged', -1, '', ''}))
    state, reason = unpack(redis.call('HMGET', key.job(job), 'state', 'error'))
  end
end

local answer, tasks, entries = {state, reason or '', tonumber(meta[5]), cursor}, {}, 0
while #tasks < tonumber(arg.limit) do
  local entry = redis.call('LINDEX', key.log(job), cursor + entries)
  if not entry then break end
  for _, task in ipairs(cmsgpack.unpack(entry)) do tasks[#tasks + 1] = task end
  entries = entries + 1
end
answer[4] = cursor + entries
for first = 1, #tasks, 1000 do
  local last = math.min(first + 999, #tasks)
  local records = redis.call('HMGET', key.values(job), unpack(tasks, first, last))
  for i = first, last do
    answer[#answer + 1] = tasks[i]
    answer[#answer + 1] = records[i - first + 1]
  end
end
if entries == 0 and state == 'running' then
  if redis.call('EXISTS', key.settle(job)) == 1 then
    give_news(job) -- edges are left to count, and this call may be the only one that does
  else
    redis.call('HSET', key.job(job), 'waiting', '1')
  end
end
renew_job(job)
return cmsgpack.pack(answer)
