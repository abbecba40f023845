-- Renew the expiry of a lock that is held.
-- keys: lock places
-- args: name token expiry
-- returns: 1, or 0 when it is lost: somebody else may have it
--@include full
--@include clock
local name, now = key.lock(arg.name), now_ms()
local packed = redis.call('HGET', name, arg.token)
if not packed then return 0 end
local holder = cmsgpack.unpack(packed)
if holder[1] <= now then return 0 end
write_when_full()
local slot, life = holder[3] or '', math.max(24 * 3600 * 1000, 2 * arg.expiry)
redis.call('HSET', name, arg.token, cmsgpack.pack({math.max(holder[1], now + arg.expiry), holder[2], slot}))
redis.call('PEXPIRE', name, life)
if slot ~= '' then redis.call('PEXPIRE', key.places(slot), life) end
return 1
