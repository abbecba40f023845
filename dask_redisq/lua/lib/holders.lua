-- Who holds a kept job besides its client: jobs that use its values.
-- keys: job holders
--
-- The set names them, it does not count: a call that is repeated takes nobody's hold but its own.

-- Tell whether a job that is still there uses values of this one; forget those that are gone, whose
-- keys expired before anybody swept them.
local function is_held(job)
  local found = false
  for _, other in ipairs(redis.call('SMEMBERS', key.holders(job))) do
    if redis.call('EXISTS', key.job(other)) == 1 then
      found = true
    else
      redis.call('SREM', key.holders(job), other)
    end
  end
  return found
end
