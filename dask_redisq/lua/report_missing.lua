-- Answer a slot whose input was not where it should be: a missing value is a question, not an error.
-- keys: active job finished values value parked
-- args: job task input
-- returns: 'finished' (others did the task), 'there' (look again), 'parked' (it is made again)
--@include full
--@include numbers
--@include damage
--
-- W1 is late with C, W2 runs C again, W1's finish frees C's input A while W2 fetches it: not W2's
-- fault, and nothing is lost. Only if the task is still open is the value really gone. Then the job
-- is rebuilt; until that the task is parked, neither ready nor leased, or it would be leased again and
-- again. `task` = -1: the client asks for an output, maybe of a job that is done: it goes on.
local MOST_URGENT = 4097 -- no client may ask for that
local task, input = tonumber(arg.task), tonumber(arg.input)
write_when_full()
local state = redis.call('HGET', key.job(arg.job), 'state')
if state ~= 'running' and not (state == 'done' and task < 0) then return 'finished' end
if task >= 0 and read_bits(key.finished(arg.job), {task})[task] then return 'finished' end
local record = redis.call('HGET', key.values(arg.job), input)
if record then
  if string.sub(record, 1, 1) == 'i' then return 'there' end
  if redis.call('EXISTS', key.value(arg.job, input, string.sub(record, 2, 25))) == 1 then return 'there' end
end
if state == 'done' then reopen(arg.job) end
-- Its users go back and are leased again at once; were they more urgent, it would never be made.
if redis.call('HEXISTS', key.job(arg.job), 'kept') == 1 then
  redis.call('HSET', key.job(arg.job), 'priority', MOST_URGENT)
  redis.call('ZADD', key.active(), 'XX', -MOST_URGENT * 2 ^ 40, arg.job)
end
mark_damaged(arg.job, false)
if task >= 0 then
  redis.call('SADD', key.parked(arg.job), task)
  redis.call('PEXPIRE', key.parked(arg.job), life_of(arg.job))
end
return 'parked'
