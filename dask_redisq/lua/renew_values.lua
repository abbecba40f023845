-- Renew the expiry of what a long job holds in keys of its own: large values and constants.
-- keys: job values value consts const
-- args: job cursor
-- returns: the next cursor, '0' when all were seen
--@include full
--@include expire
--
-- Everything else of a job is renewed by every call that writes; these keys are too many for that.
local job, life = arg.job, life_of(arg.job)
if redis.call('EXISTS', key.job(job)) == 0 then return '0' end
write_when_full()
if arg.cursor == '0' then
  for _, digest in ipairs(redis.call('SMEMBERS', key.consts(job))) do
    redis.call('PEXPIRE', key.const(job, digest), life)
  end
end
local found = redis.call('HSCAN', key.values(job), arg.cursor, 'COUNT', 500)
for i = 1, #found[2], 2 do
  local task, record = found[2][i], found[2][i + 1]
  if string.sub(record, 1, 1) == 'e' then
    redis.call('PEXPIRE', key.value(job, task, string.sub(record, 2, 25)), life)
  end
end
renew_all(job)
return found[1]
