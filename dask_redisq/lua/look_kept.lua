-- Look at some tasks of a kept job, and read values of those that are finished.
-- keys: job finished values tomb
-- args: job tasks values
-- returns: msgpack {state, error, epoch, wait, task, record, ...}; state '' when it is gone, the error is its tomb then
--@include full
--@include numbers
--@include stuck
--
-- `tasks`: msgpack, at most 2,000. `values` = '1': the records of finished ones, '' for one that
-- is lost; else 0 in place of each. While the job is rebuilt nothing is told: what is there may be of
-- two histories.
local job = arg.job
local meta = redis.call('HMGET', key.job(job), 'state', 'error', 'epoch', 'frozen')
if not meta[1] then return cmsgpack.pack({'', redis.call('GET', key.tomb(job)) or '', '', 0}) end
write_when_full()
local answer, n = {meta[1], meta[2] or '', meta[3], (meta[4] or is_damaged(job)) and 1 or 0}, 4
if answer[4] == 1 then return cmsgpack.pack(answer) end
local tasks, done = cmsgpack.unpack(arg.tasks), {}
local finished = read_bits(key.finished(job), tasks)
for _, task in ipairs(tasks) do
  if finished[task] then done[#done + 1] = task end
end
for first = 1, #done, 1000 do
  local last = math.min(first + 999, #done)
  local records = arg.values == '1' and redis.call('HMGET', key.values(job), unpack(done, first, last)) or {}
  for i = first, last do
    answer[n + 1], answer[n + 2], n = done[i], records[i - first + 1] or (arg.values == '1' and '' or 0), n + 2
  end
end
return cmsgpack.pack(answer)
