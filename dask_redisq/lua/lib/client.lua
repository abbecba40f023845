-- Tell the client of a job that there is something to read.
-- keys: job news
--@include life
local function give_news(job)
  redis.call('RPUSH', key.news(job), '1')
  redis.call('PEXPIRE', key.news(job), life_of(job))
end

local function tell_client(job)
  if redis.call('HDEL', key.job(job), 'waiting') == 1 then give_news(job) end
end
