-- Where tasks with a restriction may run: tags of which a slot carries one, and resources of its worker.
-- keys: job slot workers worker_slots
--
-- A restriction is a list of tags, the name of each slot being one of its own; those that begin with
-- RESOURCE are needs, "resource:GPU=1"; with SOFT
-- among them others may run the task, too, when none that carries a tag took it for a while. What is
-- in use is not counted anywhere: it is what the leases of the worker's slots hold, so that no replay
-- and no death can make the count wrong.
local RESOURCE, SOFT = 'resource:', 'soft:'

local function carries(tags, wanted)
  for _, tag in ipairs(wanted) do
    for _, own in ipairs(tags) do if own == tag then return true end end
  end
  return false
end

-- Return {tags, needs = {name = amount}, soft} of the restriction of a hard set.
local function read_restriction(job, set)
  local found = {tags = {}, needs = {}, soft = false}
  for _, tag in ipairs(cmsgpack.unpack(redis.call('HGET', key.job(job), set))) do
    local name, amount = string.match(tag, '^' .. RESOURCE .. '(.*)=([^=]*)$')
    if name then
      found.needs[name] = tonumber(amount)
    elseif tag == SOFT then
      found.soft = true
    else
      table.insert(found.tags, tag)
    end
  end
  return found
end

-- Return the tags by whose idle sets slots are found for a restriction: a worker that has some of a
-- resource carries its name.
local function tags_to_wake(wanted)
  if #wanted.tags > 0 then return wanted.tags end
  local tags = {}
  for name in pairs(wanted.needs) do tags[#tags + 1] = RESOURCE .. name end
  table.sort(tags)
  return tags
end

-- Tell whether the worker of a slot has enough left of what tasks need.
local function has_room(slot, wanted)
  if not next(wanted.needs) then return true end
  local worker = redis.call('HGET', key.slot(slot), 'worker')
  local info = worker and redis.call('HGET', key.workers(), worker)
  local read, about = pcall(cmsgpack.unpack, info or '')
  local has = read and type(about) == 'table' and about.resources or {}
  local used = {}
  for _, other in ipairs(worker and redis.call('SMEMBERS', key.worker_slots(worker)) or {}) do
    local holds = other ~= slot and redis.call('HGET', key.slot(other), 'holds')
    for name, amount in pairs(holds and cmsgpack.unpack(holds) or {}) do
      used[name] = (used[name] or 0) + amount
    end
  end
  for name, amount in pairs(wanted.needs) do
    if (used[name] or 0) + amount > (tonumber(has[name]) or 0) * (1 + 1e-9) then return false end
  end
  return true
end

-- Note what a lease of tasks from a set holds; nothing, if that is not a restricted one.
local function hold_resources(job, slot, set)
  local needs = set and string.sub(set, 1, 5) == 'hard:' and read_restriction(job, set).needs or {}
  if next(needs) then redis.call('HSET', key.slot(slot), 'holds', cmsgpack.pack(needs)) end
end
