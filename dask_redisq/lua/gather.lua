-- Give the client of a job what finished since it last asked; its question is the receipt of the last answer.
-- keys: job log values consumers client settle tomb
-- args: job cursor gen limit
-- returns: msgpack {state, error, finished, next cursor, generation, wanted, task, record, task, record, ...}; wanted of the client: 0 nothing, 1 a rebuild, 2 the upload, which the server forgot
--@include full
--@include settle
--@include ending
--@include expire
--@include stuck
--
-- Sending is not freeing: the reply may be lost. Entries before `cursor` have arrived, so their
-- values go now. A client that gets nothing is entered as waiting; whoever appends wakes it. A rebuild
-- writes another log, under another generation: then the cursor, which is of the old one, begins anew.
-- Of a detached or kept job nothing is freed here: another reader may not have had it yet.
-- Of a job that is gone, the error is what `lib/tomb.lua` left, or ''.
local job, cursor = arg.job, tonumber(arg.cursor)
local meta = redis.call('HMGET', key.job(job), 'state', 'error', 'acked', 'frozen', 'finished', 'gen', 'sealed', 'ttl', 'kept')
if not meta[1] then return cmsgpack.pack({'', redis.call('GET', key.tomb(job)) or '', 0, cursor, '', 0}) end
write_when_full()
hear_client(job)

local gen = meta[6] or ''
if gen ~= arg.gen then cursor = 0 end
if meta[1] == 'running' and meta[4] then
  redis.call('HSET', key.job(job), 'waiting', '1')
  return cmsgpack.pack({'running', '', tonumber(meta[5]), cursor, gen, 1})
end
local acked = tonumber(meta[3])
if cursor > redis.call('LLEN', key.log(job)) then
  mark_damaged(job, true) -- it was told more than there is: the server came back older
elseif cursor > acked and tonumber(meta[8]) == 0 and not meta[9] then
  local delivered = {}
  for _, entry in ipairs(redis.call('LRANGE', key.log(job), acked, cursor - 1)) do
    delivered[#delivered + 1] = cmsgpack.unpack(entry)
  end
  local edges = decide_edges(job, ones_of(delivered), {}, {})
  write_edges(job, edges)
  free_values(job, edges.consumers.zero)
  redis.call('HSET', key.job(job), 'acked', cursor)
end
settle_some(job)
end_if_done(job)

local state, reason = unpack(redis.call('HMGET', key.job(job), 'state', 'error'))
local wanted = is_damaged(job) and 1 or 0
if state == 'running' and not meta[7] then wanted = 2 end
local answer, tasks, entries = {state, reason or '', tonumber(meta[5]), cursor, gen, wanted}, {}, 0
while #tasks < tonumber(arg.limit) do
  local entry = redis.call('LINDEX', key.log(job), cursor + entries)
  if not entry then break end
  local n = #tasks
  for i, task in ipairs(cmsgpack.unpack(entry)) do tasks[n + i] = task end
  entries = entries + 1
end
answer[4] = cursor + entries
for first = 1, #tasks, 1000 do
  local last = math.min(first + 999, #tasks)
  local records = redis.call('HMGET', key.values(job), unpack(tasks, first, last))
  local n = #answer
  for i = first, last do
    answer[n + 1], answer[n + 2], n = tasks[i], records[i - first + 1], n + 2
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
