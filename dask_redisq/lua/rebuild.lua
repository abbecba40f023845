-- Replace all derived state of a frozen job by what was built aside, and let it go on.
-- keys: job finished wait consumers ready tagged sets delayed alone parked log settle leases built slots slot
-- args: job generation epoch finished acked hard
-- returns: 'rebuilt', or 'late' when the job is not frozen under this generation, or what was built is gone
--@include full
--@include ready
--@include numbers
--@include ending
--@include expire
--@include held_lease
--
-- Of two rebuilders, one slow, the older finds another generation, and changes nothing.
-- `epoch` is '' unless history changed: then components with inputs from before are refused. `hard` =
-- msgpack of the numbers of restrictions with ready tasks. Leases that somebody has stay: what they hold leaves the ready
-- sets, and a task that waits again leaves its lease; its late result counts all the same.
write_when_full()
local job = arg.job
local meta = redis.call('HMGET', key.job(job), 'state', 'frozen', 'damaged')
local function built(what) return key.built(job, arg.generation, what) end
if meta[1] ~= 'running' or meta[2] ~= arg.generation then return 'late' end
if redis.call('EXISTS', built('finished'), built('wait'), built('consumers'), built('log')) < 4 then return 'late' end
local log = cmsgpack.unpack(redis.call('GET', built('log')))
local hard = cmsgpack.unpack(arg.hard)

local function replace(what, name)
  redis.call('UNLINK', name)
  if redis.call('EXISTS', built(what)) == 1 then redis.call('RENAME', built(what), name) end
end
for _, set in ipairs(redis.call('ZRANGE', key.sets(job), 0, -1)) do
  redis.call('UNLINK', key.tagged(job, set))
end
redis.call('UNLINK', key.sets(job), key.parked(job), key.settle(job))
replace('finished', key.finished(job))
replace('wait', key.wait(job))
replace('consumers', key.consumers(job))
redis.call('UNLINK', key.log(job))
for _, entry in ipairs(log) do redis.call('RPUSH', key.log(job), entry) end
replace('ready', key.ready(job))
for _, number in ipairs(hard) do replace('hard:' .. number, key.tagged(job, 'hard:' .. number)) end
redis.call('SUNIONSTORE', key.alone(job), key.alone(job), built('alone'))
redis.call('UNLINK', built('alone'), built('log'))

local function leave_ready(task)
  redis.call('ZREM', key.ready(job), task)
  for _, number in ipairs(hard) do redis.call('ZREM', key.tagged(job, 'hard:' .. number), task) end
end
local leases = redis.call('HGETALL', key.leases(job))
for i = 1, #leases, 2 do
  local lease = cmsgpack.unpack(leases[i + 1])
  local held = is_held_lease(job, leases[i], lease[1])
  local waits, done, left = read_counters(key.wait(job), lease[2]), read_bits(key.finished(job), lease[2]), {}
  for k, task in ipairs(lease[2]) do
    if done[task] then
      -- nobody needs it any more
    elseif held and waits[k] == 0 then
      left[#left + 1] = task
      leave_ready(task)
    else
      redis.call('SADD', key.alone(job), task)
    end
  end
  if held then
    redis.call('HSET', key.leases(job), leases[i], cmsgpack.pack({lease[1], left, lease[3]}))
  else
    redis.call('HDEL', key.leases(job), leases[i])
  end
end
local delayed = {}
for _, task in ipairs(redis.call('ZRANGE', key.delayed(job), 0, -1)) do
  local id = tonumber(task)
  local waits = read_counters(key.wait(job), {id})[1] > 0
  if waits or read_bits(key.finished(job), {id})[id] then
    redis.call('ZREM', key.delayed(job), task)
  else
    leave_ready(task)
    delayed[#delayed + 1] = id
  end
end

local careful = redis.call('SMEMBERS', key.alone(job))
for i, task in ipairs(careful) do careful[i] = tonumber(task) end
for task in pairs(read_bits(key.finished(job), careful)) do redis.call('SREM', key.alone(job), task) end

redis.call('HSET', key.job(job), 'finished', arg.finished, 'acked', arg.acked, 'gen', arg.generation, 'rebuilt', '1')
if arg.epoch ~= '' then redis.call('HSET', key.job(job), 'epoch', arg.epoch) end
redis.call('HDEL', key.job(job), 'frozen', 'frozen_at')
-- Was something missed meanwhile, it is not repaired yet.
if meta[3] == '1' then redis.call('HDEL', key.job(job), 'damaged', 'history') end
local ready = redis.call('ZCARD', key.ready(job))
if ready > 0 then wake_for(job, 0, ready) end
for _, number in ipairs(hard) do
  local tasks = redis.call('ZCARD', key.tagged(job, 'hard:' .. number))
  if tasks > 0 then
    redis.call('ZADD', key.sets(job), now_ms(), 'hard:' .. number)
    wake_for(job, number, tasks)
  end
end
activate(job)
-- Who looked while the job was frozen was not told when they are due.
for _, task in ipairs(delayed) do wake_task(job, task) end
settle_active(job)
end_if_done(job)
give_news(job)
renew_all(job)
return 'rebuilt'
