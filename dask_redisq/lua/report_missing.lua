-- Answer a slot whose input was not where it should be: a missing value is a question, not an error.
-- keys: job finished values value
-- args: job task input
-- returns: 'finished' (others did the task), 'there' (look again), 'gone' (the job had to end)
--@include numbers
--@include ending
--
-- W1 is late with C, W2 runs C again, W1's finish frees C's input A while W2 fetches it: not W2's
-- fault, and nothing is lost. Only if the task is still open is the value really gone.
local task, input = tonumber(arg.task), tonumber(arg.input)
if redis.call('HGET', key.job(arg.job), 'state') ~= 'running' then return 'finished' end
if read_bits(key.finished(arg.job), {task})[task] then return 'finished' end
local record = redis.call('HGET', key.values(arg.job), input)
if record then
  if string.sub(record, 1, 1) == 'i' then return 'there' end
  if redis.call('EXISTS', key.value(arg.job, input, string.sub(record, 2, 25))) == 1 then return 'there' end
end
end_job(arg.job, 'failed', cmsgpack.pack({'lost', input, tostring(task), ''}))
return 'gone'
