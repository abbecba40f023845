-- Ask the policy of a job which of its ready tasks a slot should be given.
-- flags: no-writes
-- keys: job slot slots workers ready tagged values about
-- args: job slot tag known want floor others
-- returns: msgpack {'tasks', {task, ...}}, {'error', text}, or {'nothing'} when there is nothing to choose
--@include take
--@include policy
--
-- It writes nothing, which the server sees to: so one that does not end can be killed, and one that fails
-- leaves nothing half done. What it names is a wish: step.lua takes what is ready then. `tag`: what
-- get_tag gives in that slot, the first of the tags that the policy sees.
local CANDIDATES = 256
local EDGES_READ = 1000 -- inputs whose size is looked up

local edges = 0

-- Return how many bytes a value takes; 0 if that is not known.
local function size_of(job, task)
  local length = redis.call('HSTRLEN', key.values(job), task)
  if length > 64 then return length - 25 end -- an inline one is not read for its size
  local record = length > 0 and redis.call('HGET', key.values(job), task) or 'i'
  if string.sub(record, 1, 1) == 'i' then return math.max(0, length - 25) end
  return tonumber(string.sub(record, 26)) or 0
end

local function bytes_of(job, inputs, kept)
  local bytes = 0
  edges = edges + #inputs + #kept / 2
  if edges > EDGES_READ then return 0 end
  for _, input in ipairs(inputs) do bytes = bytes + size_of(job, input) end
  for i = 1, #kept, 2 do bytes = bytes + size_of(kept[i], kept[i + 1]) end
  return bytes
end

-- Return what may be leased to the slot now, in the order of the default.
local function find_candidates(job, sets)
  local tasks = {}
  for _, set in ipairs(sets) do
    if #tasks < CANDIDATES then
      for _, task in ipairs(redis.call('ZRANGE', set_name(job, set), 0, CANDIDATES - #tasks - 1)) do
        tasks[#tasks + 1] = tonumber(task)
      end
    end
  end
  local about = #tasks > 0 and redis.call('HMGET', key.about(job), unpack(tasks)) or {}
  for i, task in ipairs(tasks) do
    local known = about[i] and cmsgpack.unpack(about[i]) or {'', 0, '', {}, {}}
    tasks[i] = {
      task = task, key = known[1], priority = known[2], tag = known[3], bytes = bytes_of(job, known[4], known[5]),
    }
  end
  return tasks
end

-- Return the tasks at the positions that a policy gave, each once.
local function read_positions(found, candidates)
  local wished, seen = {}, {}
  for _, position in ipairs(found) do
    local one = type(position) == 'number' and candidates[position]
    if one and not seen[position] then
      seen[position] = true
      wished[#wished + 1] = one
    end
  end
  return wished
end

local meta = redis.call('HMGET', key.job(arg.job), 'policy', 'state', 'chunk', 'patience')
local worker = redis.call('HGET', key.slot(arg.slot), 'worker')
if not meta[1] or meta[2] ~= 'running' or not worker then return cmsgpack.pack({'nothing'}) end
local policy, wrong = compile_policy(meta[1])
if not policy then return cmsgpack.pack({'error', wrong}) end

local carried, tags = tags_of(arg.slot), {arg.tag}
for _, tag in ipairs(carried) do if tag ~= arg.tag then tags[#tags + 1] = tag end end
local first, last = order_sets(arg.job, arg.slot, carried, tonumber(meta[4]))
local sets = in_order(first, last)
local candidates, numbers, backlog = find_candidates(arg.job, sets), {}, 0
if #candidates == 0 then return cmsgpack.pack({'nothing'}) end
for _, set in ipairs(sets) do backlog = backlog + redis.call('ZCARD', set_name(arg.job, set)) end
for i, one in ipairs(candidates) do numbers[i] = one.task end
local read, about = pcall(cmsgpack.unpack, redis.call('HGET', key.workers(), worker) or '')
local name = read and type(about) == 'table' and about.name or worker
local want = math.min(CANDIDATES, chunk_size(arg.job, tonumber(meta[3]), backlog))

local answered, found = ask_policy(policy, candidates, tags, name, want)
if not answered then return cmsgpack.pack({'error', tostring(found)}) end
if type(found) ~= 'table' then
  return cmsgpack.pack({'error', 'it returned a ' .. type(found) .. ', not an array of positions'})
end
return cmsgpack.pack({'tasks', read_positions(found, numbers)})
