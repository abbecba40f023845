-- Read and write bits and u32 counters of many tasks with few commands.
--
-- Tasks of one chunk are mostly neighbours, so their bits and counters are one window of the
-- string: GETRANGE and SETRANGE of it cost 0.2 us a task where BITFIELD costs 0.9. Scattered
-- tasks go through BITFIELD, 200 operations a call (unpack ends at 8,000 items).
local BATCH = 200

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
  if #ids < 4 or to - from > 64 + #ids then
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
  if high - low > 4 * #ids + 16 then
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

-- Write counters that read_counters gave and the caller changed.
local function write_counters(name, ids, values)
  if #ids == 0 then return end
  local low, high = span(ids)
  if high - low + 1 == #ids then
    local words = {}
    for i, id in ipairs(ids) do words[id - low + 1] = struct.pack('>I4', values[i]) end
    redis.call('SETRANGE', name, 4 * low, table.concat(words))
    return
  end
  bitfield(name, ids, function(op, i)
    op[#op + 1] = 'SET'; op[#op + 1] = 'u32'; op[#op + 1] = '#' .. ids[i]; op[#op + 1] = values[i]
  end)
end
