-- Mark jobs whose derived state cannot be trusted: they are rebuilt before they go on.
-- keys: job jobs
--@include clock
--@include client
--
-- Nothing is patched. A counter that was corrected by hand where a task ran again is a counter
-- that is wrong for those who decremented it before; see rebuild.lua.

-- `history`: what happened before may be forgotten (a server that came back older), not only a value.
local function mark_damaged(job, history)
  -- '2': found while a rebuild was under way, that may have read before it.
  local frozen = redis.call('HEXISTS', key.job(job), 'frozen') == 1
  redis.call('HSET', key.job(job), 'damaged', frozen and '2' or '1')
  if history then redis.call('HSET', key.job(job), 'history', '1') end
  -- Who rebuilds it now may have read the other history, or none while the server was empty.
  if history and frozen then redis.call('HSET', key.job(job), 'frozen', 'nobody', 'frozen_at', 0) end
  tell_client(job)
end

-- Have what was made in the past of a job refused. What is there fits together, as it did then.
local function new_epoch(job)
  local text = table.concat({job, redis.call('HGET', key.job(job), 'epoch'), now_ms()}, ' ')
  redis.call('HSET', key.job(job), 'epoch', string.sub(redis.sha1hex(text), 1, 16))
end

-- Mark every job of the queue: the server came back with another history.
--
-- One that is done goes on, too. Its client may have read the log of the other history, where the
-- outputs came in another order: its cursor would pass over one that it never had.
local function distrust_all()
  for _, job in ipairs(redis.call('ZRANGE', key.jobs(), 0, -1)) do
    local state = redis.call('HGET', key.job(job), 'state')
    if state == 'done' then reopen(job) end
    if state == 'running' and redis.call('HEXISTS', key.job(job), 'sealed') == 0 then new_epoch(job) end
    if state == 'running' or state == 'done' then mark_damaged(job, true) end
  end
end
