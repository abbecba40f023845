-- Renew the expiry of a lock that is held.
-- keys: lock places
-- args: name token expiry
-- returns: 1, or 0 when it is lost: somebody else may have it
--@include full
--@include clock
--@include places
local name, now = key.lock(arg.name), now_ms()
local packed = redis.call('HGET', name, arg.token)
if not packed then return 0 end
local holder = cmsgpack.unpack(packed)
if holder[1] <= now then return 0 end
write_when_full()
local slot = holder[3] or ''
redis.call('HSET', name, arg.token, cmsgpack.pack({math.max(holder[1], now + arg.expiry), holder[2], slot}))
redis.call('PEXPIRE', name, memory_of(arg.name, arg.expiry))
if slot ~= '' then redis.call('PEXPIRE', key.places(slot), memory_of('', arg.expiry)) end
return 1
