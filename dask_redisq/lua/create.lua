-- Make a job: its counters, settings and state; blocks follow, then seal.
-- keys: queue jobs job answer names holders held wait consumers restrict new_wait new_consumers new_restrict new_answer new_names client tomb children removing removed
-- args: job n block blocks epoch chunk priority python allowed retries retry_delay patience client_lease hard ttl pure watched kept uses most ordered parent by policy since
-- returns: 'created', 'exists' (a replay), 'over' (it was, and is removed), 'removed' (its queue is), or 'unstaged' (what was staged is not there: the server lost it), or 'gone' (so is a job whose values this one uses)
--@include expire
--@include ending
--@include tomb
--
-- Only here are a job's keys made. The counters were staged by plain SETs, because megabytes
-- in ARGV stall everyone; a SET that is sent twice then only fills a staging key, which expires,
-- and never resets the counters of a job that runs.
--
-- `ordered`: of what is ready the lowest number goes first, wherever it became ready. `kept`: its values stay for others, until nobody holds it. `uses`: kept jobs whose values it reads.
-- It is entered among their holders here, or not made: else C drops x while a job that reads x is
-- on its way.
--
-- `parent`: the job whose task waits for this one: it ends with that, and is not begun after it. Of
-- the two this one comes first. Story: task A holds a redisq.Lock and computes; who stands in for it
-- takes B, which waits for that lock: for ever, since what A waits for has no slot.
--
-- `by` = msgpack {user, host, pid} of who submits it: shown to people, and read by nothing else.
--
-- `policy`: Lua that wishes which tasks a slot is given (wish.lua), or ''.
--
-- `since`: 0, or when its client had begun with the loop of which this job is a part, in ms.
--
-- The epoch is of this run of the server too: the server lost the job, its client lost the connection
-- and sends all of it again, and a slot still keeps values that it made in the first one.
if redis.call('EXISTS', key.job(arg.job)) == 1 then return 'exists' end
-- It was cancelled and removed while its client, which lost its connection, had not heard of it:
-- what that sends again would bring the job back, and it would run.
if redis.call('EXISTS', key.tomb(arg.job)) == 1 then return 'over' end
-- Story: C removes the queue while D computes one graph after the other. D's next job was made between two
-- of C's deletions, which took some of its keys: it was taken for one that the server lost, submitted again,
-- and waited for workers that had left. What is made when all keys are gone is of a new queue, and is to
-- wait; but not the next window of a loop whose last one ended just before.
local function why_removed()
  local of_loop = tonumber(arg.since) > 0
  -- EXISTS first: who counts the GETs of a server counts values that are read.
  if redis.call('EXISTS', key.removing(), of_loop and key.removed() or key.removing()) == 0 then return nil end
  local why = redis.call('GET', key.removing())
  if why then return why end
  local last = of_loop and redis.call('GET', key.removed())
  if not last then return nil end
  local at, reason = unpack(cmsgpack.unpack(last))
  return at >= tonumber(arg.since) and reason or nil
end
local removed = why_removed()
if removed then
  bury(arg.job, 'cancelled', cmsgpack.pack({'cancelled', -1, removed, ''}))
  -- Its client's greeting is all that is here, and would be for a day.
  if redis.call('HLEN', key.queue()) == 2 and redis.call('HEXISTS', key.queue(), 'run') == 1 then
    redis.call('UNLINK', key.queue())
  end
  return 'removed'
end
-- More urgent than its parent, and less than what users call more urgent.
local NESTED = 2 ^ -10
local hard = cmsgpack.unpack(arg.hard)
-- A server that came back older may have forgotten all that was staged, or the last of it: without
-- the restrictions a task would run anywhere.
if redis.call('EXISTS', key.new_wait(arg.job), key.new_consumers(arg.job)) < 2
    or #hard > 0 and redis.call('EXISTS', key.new_restrict(arg.job)) == 0 then
  return 'unstaged'
end
local uses = cmsgpack.unpack(arg.uses)
for _, other in ipairs(uses) do
  local meta = redis.call('HMGET', key.job(other), 'state', 'kept')
  if not meta[2] or meta[1] ~= 'running' and meta[1] ~= 'done' then return 'gone' end
end
local run = redis.call('HGET', key.queue(), 'run') or ''
local epoch = string.sub(redis.sha1hex(arg.epoch .. ' ' .. run), 1, 16)
redis.call('RENAME', key.new_wait(arg.job), key.wait(arg.job))
redis.call('RENAME', key.new_consumers(arg.job), key.consumers(arg.job))
if redis.call('EXISTS', key.new_answer(arg.job), key.new_names(arg.job)) == 2 then
  redis.call('RENAME', key.new_answer(arg.job), key.answer(arg.job))
  redis.call('RENAME', key.new_names(arg.job), key.names(arg.job))
end
local priority = tonumber(arg.priority)
local above = arg.parent ~= '' and redis.call('HGET', key.job(arg.parent), 'priority')
if above then priority = math.max(priority, above + NESTED) end
redis.call('HSET', key.job(arg.job),
  'state', 'running', 'n', arg.n, 'finished', 0, 'block', arg.block, 'blocks', arg.blocks,
  'by', arg.by,
  'epoch', epoch, 'chunk', arg.chunk, 'priority', priority, 'python', arg.python,
  'allowed', arg.allowed, 'retries', arg.retries, 'retry_delay', arg.retry_delay,
  'patience', arg.patience, 'acked', 0, 'pure', arg.pure,
  'lease', arg.client_lease, 'ttl', arg.ttl,
  'life', first_life(tonumber(arg.client_lease), tonumber(arg.ttl)))
local files = redis.call('HGET', key.queue(), 'files')
if files then redis.call('HSET', key.job(arg.job), 'files', files) end
if arg.watched == '1' then redis.call('HSET', key.job(arg.job), 'watched', '1') end
if tonumber(arg.most) > 0 then redis.call('HSET', key.job(arg.job), 'most', arg.most) end
if arg.ordered == '1' then redis.call('HSET', key.job(arg.job), 'ordered', '1') end
if arg.policy ~= '' then redis.call('HSET', key.job(arg.job), 'asks', '1', 'policy', arg.policy) end
if arg.kept == '1' then redis.call('HSET', key.job(arg.job), 'kept', '1') end
for _, other in ipairs(uses) do
  redis.call('SADD', key.held(arg.job), other)
  redis.call('SADD', key.holders(other), arg.job)
  redis.call('PEXPIRE', key.holders(other), life_of(other))
end
if #hard > 0 then
  redis.call('RENAME', key.new_restrict(arg.job), key.restrict(arg.job))
  for number, tags in ipairs(hard) do
    redis.call('HSET', key.job(arg.job), 'hard:' .. number, cmsgpack.pack(tags))
  end
end
redis.call('ZADD', key.jobs(), now_ms(), arg.job)
hear_client(arg.job)
redis.call('HSET', key.queue(), 'schema', '1')
if tonumber(arg.since) > 0 then redis.call('HSET', key.queue(), 'loops', '1') end
renew_first(arg.job)
renew_queue()
if arg.parent ~= '' then
  if redis.call('HGET', key.job(arg.parent), 'state') == 'running' then
    redis.call('SADD', key.children(arg.parent), arg.job)
    redis.call('PEXPIRE', key.children(arg.parent), life_of(arg.parent))
  else
    end_job(arg.job, 'cancelled', cmsgpack.pack({'cancelled', -1, ORPHAN, ''}))
  end
end
return 'created'
