-- Take a lock, or one of the places of a semaphore, or be told when to ask again.
-- keys: lock places slots queue
-- args: name token places expiry slot
-- returns: msgpack {fence, ask again in ms}: fence > 0, it is taken; 0, it is not
--@include full
--@include clock
--@include places
--
-- A holder that dies does not give back: its place is free once nobody renewed it for `expiry` ms. So a
-- holder that was only stopped may go on beside its successor, and what the lock guards can tell them
-- apart by the fence, which only rises: by the clock, lest it begin anew with the key. The same call
-- twice is answered alike; a copy that comes after the release, within the last 64 of them, takes nothing:
-- nobody would give that back. It works when the memory is full: its holder may be who frees some.
--
-- `slot`: whose task takes it; '' for any other process. Its supervisor frees what it holds when it sees it
-- end (unregister.lua). A call that was under way then comes from a slot that is not registered any more,
-- and takes nothing; one whose registration the server lost asks again until its worker's next beat.
local name, now = key.lock(arg.name), now_ms()
local held, places, first = redis.call('HGETALL', name), tonumber(arg.places), nil
local last, fence, over = 0, nil, {}
for i = 1, #held, 2 do
  if held[i] == 'last' then
    last = tonumber(held[i + 1])
  elseif held[i] == 'gone' then
    if string.find(held[i + 1], arg.token, 1, true) then return cmsgpack.pack({0, 0}) end
  else
    local holder = cmsgpack.unpack(held[i + 1])
    if holder[1] <= now then
      over[#over + 1] = held[i]
    else
      places = places - 1
      first = math.min(first or holder[1], holder[1])
      if held[i] == arg.token then fence = holder[2] end
    end
  end
end
if fence then return cmsgpack.pack({fence, 0}) end
if arg.slot ~= '' and redis.call('SISMEMBER', key.slots(), arg.slot) == 0 and redis.call('EXISTS', key.queue()) == 1 then
  return cmsgpack.pack({0, 500})
end
if places <= 0 then return cmsgpack.pack({0, first - now}) end
fence = math.max(last + 1, now)
write_when_full()
for _, token in ipairs(over) do remove_place(arg.name, token) end
local life = memory_of(arg.name, arg.expiry)
redis.call('HSET', name, arg.token, cmsgpack.pack({now + arg.expiry, fence, arg.slot}), 'last', fence)
redis.call('PEXPIRE', name, life)
if arg.slot ~= '' then
  redis.call('HSET', key.places(arg.slot), arg.token, arg.name)
  redis.call('PEXPIRE', key.places(arg.slot), memory_of('', arg.expiry))
end
return cmsgpack.pack({fence, 0})
