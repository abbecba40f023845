-- Tell the client of a job that there is something to read.
-- keys: job news
local function tell_client(job)
  if redis.call('HDEL', key.job(job), 'waiting') == 1 then
    redis.call('RPUSH', key.news(job), '1')
  end
end
