-- Read and write bits and u32 counters of many tasks with few commands.
--
-- Tasks of one chunk are mostly neighbours, so their bits and counters are one window of the
-- string: GETRANGE and SETRANGE of it cost 0.2 us a task where BITFIELD costs 0.9. Scattered
-- ones are read by BITFIELD, 200 operations a call (unpack ends at 8,000 items).
local BATCH = 200
-- Counters that are copied along rather than skipped by one more call.
local GAP = 2048

local function span(ids)
  local low, high = ids[1], ids[1]
  for _, id in ipairs(ids) do
    if id < low then low = id end
    if id > high then high = id end
  end
  return low, high
end

-- Run BITFIELD with one operation per id; `operation(op, i)` appends its words.
local function bitfield(name, ids, operation)
  local out = {}
  for first = 1, #ids, BATCH do
    local op = {}
    for i = first, math.min(first + BATCH - 1, #ids) do operation(op, i) end
    for _, value in ipairs(redis.call('BITFIELD', name, unpack(op))) do out[#out + 1] = value end
  end
  return out
end

-- Return {id = true} for those of `ids` whose bit is set.
local function read_bits(name, ids)
  local set = {}
  if #ids == 0 then return set end
  local low, high = span(ids)
  local from, to = math.floor(low / 8), math.floor(high / 8)
  if to - from > 256 + 8 * #ids then
    local found = bitfield(name, ids, function(op, i)
      op[#op + 1] = 'GET'; op[#op + 1] = 'u1'; op[#op + 1] = '#' .. ids[i]
    end)
    for i, id in ipairs(ids) do if found[i] == 1 then set[id] = true end end
    return set
  end
  local window = redis.call('GETRANGE', name, from, to)
  if not string.find(window, '[^%z]') then return set end
  for _, id in ipairs(ids) do
    local byte = string.byte(window, math.floor(id / 8) - from + 1)
    if byte and bit.band(byte, bit.rshift(128, id % 8)) ~= 0 then set[id] = true end
  end
  return set
end

-- Set the bits of `ids`.
local function set_bits(name, ids)
  if #ids == 0 then return end
  local low, high = span(ids)
  local from, to = math.floor(low / 8), math.floor(high / 8)
  if #ids < 4 or to - from > 8 * #ids then -- a byte costs 0.15 us, a SETBIT 1.2
    for _, id in ipairs(ids) do redis.call('SETBIT', name, id, 1) end
    return
  end
  local window = redis.call('GETRANGE', name, from, to)
  local bytes = {}
  for i = 1, to - from + 1 do bytes[i] = string.byte(window, i) or 0 end
  for _, id in ipairs(ids) do
    local i = math.floor(id / 8) - from + 1
    bytes[i] = bit.bor(bytes[i], bit.rshift(128, id % 8))
  end
  for i, byte in ipairs(bytes) do bytes[i] = string.char(byte) end
  redis.call('SETRANGE', name, from, table.concat(bytes))
end

-- Return the counters of `ids`, in their order.
local function read_counters(name, ids)
  if #ids == 0 then return {} end
  local low, high = span(ids)
  if high - low > GAP + 64 * #ids then
    return bitfield(name, ids, function(op, i)
      op[#op + 1] = 'GET'; op[#op + 1] = 'u32'; op[#op + 1] = '#' .. ids[i]
    end)
  end
  local window = redis.call('GETRANGE', name, 4 * low, 4 * high + 3)
  local out = {}
  for i, id in ipairs(ids) do
    local at = 4 * (id - low) + 1
    out[i] = at + 3 <= #window and struct.unpack('>I4', window, at) or 0
  end
  return out
end

-- Subtract within one window of counters: those of pairs_[first], .., pairs_[last].
local function subtract_window(window, pairs_, first, last, left)
  local sub, pack, read = string.sub, struct.pack, struct.unpack
  local low, out, n, at = pairs_[first], {}, 0, 1
  for i = first, last, 2 do
    local id = pairs_[i]
    local from = 4 * (id - low) + 1
    local count = read('>I4', window, from) - pairs_[i + 1]
    if count <= 0 then
      left.zero[#left.zero + 1] = id
      if count < 0 then left.below[#left.below + 1], count = id, 0 end
    end
    if from > at then
      n = n + 1
      out[n] = sub(window, at, from - 1)
    end
    n = n + 1
    out[n] = pack('>I4', count)
    at = from + 4
  end
  left.writes[#left.writes + 1] = {4 * low, table.concat(out)}
end

-- Decide what `pairs_` = {id, count, id, count, ...}, by rising ids, leave of the counters.
--
-- Returns {writes = for write_counters, zero = ids that come to 0, below = those of them that
-- would go below, torn = counters are missing}. Windows are spliced, 1 us an id: a
-- BITFIELD GET and SET cost 4.
local function subtract(name, pairs_)
  local left, first = {writes = {}, zero = {}, below = {}, torn = false}, 1
  while first <= #pairs_ do
    local last = first
    while last + 2 < #pairs_ and pairs_[last + 2] - pairs_[last] <= GAP do last = last + 2 end
    local from, to = 4 * pairs_[first], 4 * pairs_[last] + 3
    local window = redis.call('GETRANGE', name, from, to)
    if #window == to - from + 1 then
      subtract_window(window, pairs_, first, last, left)
    else
      left.torn = true
    end
    first = last + 2
  end
  return left
end

-- Write what subtract decided.
local function write_counters(name, left)
  for _, write in ipairs(left.writes) do redis.call('SETRANGE', name, write[1], write[2]) end
end
