-- Let others have the resources that a slot holds, while its task waits for theirs.
-- keys: slots slot
-- args: slot seq
-- returns: 'ok'
--@include full
--@include ready
--
-- A task on the only GPU computes something that needs a GPU, and waits: for itself, did it not lend.
-- When it goes on it has it again beside others, for the rest of its run: they came first.
if redis.call('SISMEMBER', key.slots(), arg.slot) == 0 then return 'ok' end
local state = redis.call('HMGET', key.slot(arg.slot), 'seq', 'holds')
if not state[2] or tonumber(state[1]) ~= tonumber(arg.seq) then return 'ok' end
write_when_full()
redis.call('HDEL', key.slot(arg.slot), 'holds')
pass_on(1)
return 'ok'
