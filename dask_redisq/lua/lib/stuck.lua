-- Tell whether a job needs a rebuild.
-- keys: job ready sets delayed leases settle parked
--@include damage
--
-- The cheap half of the audit: a sealed, unfinished job of which nothing is ready, leased, parked or
-- to be counted has a count that is wrong. Its other half is the rebuild itself.
local function is_damaged(job)
  local meta = redis.call('HMGET', key.job(job), 'state', 'sealed', 'damaged', 'frozen', 'n', 'finished')
  if meta[1] ~= 'running' or not meta[2] then return false end
  if meta[3] or meta[4] then return true end
  if redis.call('EXISTS', key.ready(job), key.sets(job), key.delayed(job), key.leases(job),
      key.settle(job), key.parked(job)) > 0
      or meta[5] == meta[6] then
    return false
  end
  mark_damaged(job, false)
  return true
end
