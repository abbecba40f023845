-- How long the keys of a job stay when nobody renews them, and the lease of its client.
-- keys: job client
--
-- Client and workers may all be killed at once, so that nobody is left to sweep: the keys then go
-- by themselves. Those of a detached job stay, once it ended, as long as its results were to be kept.
local DAY = 24 * 3600 * 1000
local LEASES = 5 -- that the keys of a job stay without its client: time to cancel, sweep and tell
local MARGIN = 600 * 1000 -- that a detached job's keys outlast their time: a monitor sweeps before

-- The life that `create` gives a job; `ttl` > 0: it is detached, and kept so long after its end.
local function first_life(lease, ttl)
  return ttl > 0 and ttl + DAY or LEASES * lease
end

-- What this call read already: a command costs 2 us, and most scripts ask for it several times.
local lives = {}

local function life_of(job)
  lives[job] = lives[job] or tonumber(redis.call('HGET', key.job(job), 'life') or DAY)
  return lives[job]
end

local function set_life(job, life)
  redis.call('HSET', key.job(job), 'life', life)
  lives[job] = life
end

-- A job that was done goes on: an output is gone, or what happened is in doubt.
local function reopen(job)
  local meta = redis.call('HMGET', key.job(job), 'lease', 'ttl')
  redis.call('HSET', key.job(job), 'state', 'running')
  set_life(job, first_life(tonumber(meta[1]), tonumber(meta[2])))
  redis.call('HDEL', key.job(job), 'ended', 'expiring')
end

-- Its client was heard of. A detached job that is sealed has none, nor has a kept one that it let go.
local function hear_client(job)
  local meta = redis.call('HMGET', key.job(job), 'lease', 'ttl', 'sealed', 'let_go')
  if meta[1] and not meta[4] and not (tonumber(meta[2]) > 0 and meta[3]) then
    redis.call('SET', key.client(job), '1', 'PX', meta[1])
  end
end
