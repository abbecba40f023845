-- Read and write bits and u32 counters of many tasks with few commands.
--
-- Tasks of one chunk are mostly neighbours, so their bits and counters are one window of the
-- string: GETRANGE and SETRANGE of it cost 0.2 us a task where BITFIELD costs 0.9. Scattered
-- ones are read by BITFIELD, 200 operations a call (unpack ends at 8,000 items).
local BATCH = 200
-- Bytes of bits that are read and written at once.
local LINE = 4000
-- Counters that are copied along rather than skipped by one more call.
local GAP = 2048
-- Counters that are read and written at once, at most, and how far apart two of them may be.
local RUN, NEAR = 250, 16

local floor, band, bor, rshift = math.floor, bit.band, bit.bor, bit.rshift
local byte_at, sub, read, write = string.byte, string.sub, struct.unpack, struct.pack

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
  local from, to = floor(low / 8), floor(high / 8)
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
    local byte = byte_at(window, floor(id / 8) - from + 1)
    if byte and band(byte, rshift(128, id % 8)) ~= 0 then set[id] = true end
  end
  return set
end

-- Set the bits of `ids`; return whether the key may be new.
local function set_bits(name, ids)
  if #ids == 0 then return false end
  local low, high = span(ids)
  local from, to = floor(low / 8), floor(high / 8)
  local count = to - from + 1
  if count > math.min(40 * #ids, LINE) then -- a byte costs 0.013 us, a SETBIT 0.5
    for _, id in ipairs(ids) do redis.call('SETBIT', name, id, 1) end
    return true
  end
  local bytes = {byte_at(redis.call('GETRANGE', name, from, to), 1, -1)}
  local new = #bytes == 0
  for i = #bytes + 1, count do bytes[i] = 0 end
  for _, id in ipairs(ids) do
    local i = floor(id / 8) - from + 1
    bytes[i] = bor(bytes[i], rshift(128, id % 8))
  end
  redis.call('SETRANGE', name, from, string.char(unpack(bytes)))
  return new
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
  local out, length = {}, #window
  for i, id in ipairs(ids) do
    local at = 4 * (id - low) + 1
    out[i] = at + 3 <= length and read('>I4', window, at) or 0
  end
  return out
end

-- Return the format of `width` counters. All at once cost 0.03 us each, one by one 0.2.
local formats = {}
local function counters(width)
  formats[width] = formats[width] or '>' .. string.rep('I4', width)
  return formats[width]
end

-- Return the last place of those after pairs_[first] whose counters are read and written with its own.
local function end_of_run(pairs_, first, last)
  local most, run = pairs_[first] + RUN, first
  while run < last do
    local next_one = pairs_[run + 2]
    if next_one - pairs_[run] > NEAR or next_one >= most then break end
    run = run + 2
  end
  return run
end

-- Subtract within one window of counters: those of pairs_[first], .., pairs_[last].
local function subtract_window(window, pairs_, first, last, left)
  local low, out, n, at = pairs_[first], {}, 0, 1
  local zero, zeros = left.zero, #left.zero
  while first <= last do
    local run = end_of_run(pairs_, first, last)
    local base = pairs_[first] - 1
    local start, width = 4 * (base + 1 - low) + 1, pairs_[run] - base
    local counts = {read(counters(width), window, start)}
    for i = first, run, 2 do
      local id = pairs_[i]
      local count = counts[id - base] - pairs_[i + 1]
      if count <= 0 then
        zeros = zeros + 1
        zero[zeros] = id
        if count < 0 then left.below[#left.below + 1], count = id, 0 end
      end
      counts[id - base] = count
    end
    out[n + 1] = sub(window, at, start - 1)
    out[n + 2] = write(counters(width), unpack(counts, 1, width))
    n, at, first = n + 2, start + 4 * width, run + 2
  end
  left.writes[#left.writes + 1] = {4 * low, table.concat(out)}
end

-- Decide what `pairs_` = {id, count, id, count, ...}, by rising ids, leave of the counters.
--
-- Returns {writes = for write_counters, zero = ids that come to 0, below = those of them that
-- would go below, torn = counters are missing}. Windows are spliced: a BITFIELD GET and SET
-- cost 4 us an id.
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
