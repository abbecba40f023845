-- List the recorded values of a job, slice by slice.
-- keys: values value
-- args: job cursor
-- returns: msgpack {next cursor, tasks whose value is there, tasks whose value is gone}; '0' ends it
local found = redis.call('HSCAN', key.values(arg.job), arg.cursor, 'COUNT', 500)
local there, gone = {}, {}
for i = 1, #found[2], 2 do
  local task, record = found[2][i], found[2][i + 1]
  if string.sub(record, 1, 1) == 'i'
      or redis.call('EXISTS', key.value(arg.job, task, string.sub(record, 2, 25))) == 1 then
    there[#there + 1] = tonumber(task)
  else
    gone[#gone + 1] = tonumber(task)
  end
end
return cmsgpack.pack({found[1], there, gone})
