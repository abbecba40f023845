-- Leave word of a job that is about to be gone, for who comes late.
-- keys: tomb
--
-- A client slept past its lease, and finds nothing: was its job cancelled, was its queue removed,
-- did its results expire, or did the server lose its data? Only the last one leaves no word.
local TOMB_LIFE = 600 * 1000

-- `state`: cancelled (`reason` as end_job's), expired or forgotten.
local function bury(job, state, reason)
  redis.call('SET', key.tomb(job), cmsgpack.pack({state, reason}), 'PX', TOMB_LIFE)
end
