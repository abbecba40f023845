-- Take places of locks away from who holds them, and wake who waits for one.
-- keys: lock freed places
--
-- A place is {until, fence, slot} in the hash of its lock. `places` of a slot names the locks of its own.

-- For how many ms a lock is remembered: its fence, and tokens that a late copy of a call may bring. Of what
-- Dask makes for one graph, a lock named `dask:` and a uuid, nobody reads the fence, and there may be many.
local function memory_of(name, expiry)
  local least = string.sub(name, 1, 5) == 'dask:' and 10 * 60 * 1000 or 24 * 3600 * 1000
  return math.max(least, 2 * expiry)
end

-- Forget a place; return whether it was there.
local function remove_place(name, token)
  local packed = redis.call('HGET', key.lock(name), token)
  if not packed then return false end
  redis.call('HDEL', key.lock(name), token)
  local slot = cmsgpack.unpack(packed)[3] or ''
  if slot ~= '' then redis.call('HDEL', key.places(slot), token) end
  return true
end

local function wake_for_place(name)
  if redis.call('LLEN', key.freed(name)) < 8 then -- nobody may wait: one too many wakes in vain
    redis.call('RPUSH', key.freed(name), '1')
    redis.call('PEXPIRE', key.freed(name), 60 * 1000)
  end
end

-- Free what a slot held that ended. The fence of each lock stays, so that the next one's is higher.
local function free_places(slot)
  local held = redis.call('HGETALL', key.places(slot))
  for i = 1, #held, 2 do
    if remove_place(held[i + 1], held[i]) then wake_for_place(held[i + 1]) end
  end
  if #held > 0 then redis.call('DEL', key.places(slot)) end
end
