-- Build a slice of a set aside for a rebuild, with an expiry from the start.
-- keys: job built
-- args: job generation what kind tasks life
-- returns: 1, or 0 when the job is not frozen under this generation
--
-- `kind`: 'zset' by task number, or 'set'. At most 1,000 tasks a call.
if redis.call('HGET', key.job(arg.job), 'frozen') ~= arg.generation then return 0 end
local name, tasks, words = key.built(arg.job, arg.generation, arg.what), cmsgpack.unpack(arg.tasks), {}
for _, task in ipairs(tasks) do
  if arg.kind == 'zset' then words[#words + 1] = task end
  words[#words + 1] = task
end
if arg.kind == 'zset' then
  redis.call('ZADD', name, unpack(words))
else
  redis.call('SADD', name, unpack(words))
end
redis.call('PEXPIRE', name, arg.life)
return 1
