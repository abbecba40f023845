-- Tell the client of a job that there is something to read.
-- keys: job news
local function give_news(job)
  redis.call('RPUSH', key.news(job), '1')
  redis.call('PEXPIRE', key.news(job), 24 * 3600 * 1000)
end

local function tell_client(job)
  if redis.call('HDEL', key.job(job), 'waiting') == 1 then give_news(job) end
end
