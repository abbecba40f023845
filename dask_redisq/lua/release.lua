-- Give a lock back and wake one that waits for it; or say that it is wanted no more.
-- keys: lock
-- args: name token
-- returns: 1, or 0 when it was not held by this token, or not any more
--@include full
--@include places
--
-- What was released is noted, with a '+' or '-' for the answer: this call may come twice, and a late copy of
-- acquire.lua must not take for this token what nobody would give back.
local name = key.lock(arg.name)
local gone = redis.call('HGET', name, 'gone') or ''
local at = string.find(gone, arg.token, 1, true)
if at then return string.sub(gone, at + #arg.token, at + #arg.token) == '+' and 1 or 0 end
write_when_full()
local held = remove_place(arg.name, arg.token)
local entry = arg.token .. (held and '+' or '-')
redis.call('HSET', name, 'gone', string.sub(entry .. gone, 1, 64 * #entry))
if redis.call('PTTL', name) < 0 then redis.call('PEXPIRE', name, memory_of(arg.name, 0)) end
if not held then return 0 end
wake_for_place(arg.name)
return 1
