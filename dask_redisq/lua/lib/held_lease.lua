-- Tell whether a lease is in somebody's hands (P1).
-- keys: slots slot
--
-- The server evicted W1's hash, or somebody deleted it: its lease stays, W1 registers again and knows
-- nothing of it, and its tasks would be leased for ever.

local function is_held_lease(job, slot, seq)
  if redis.call('SISMEMBER', key.slots(), slot) == 0 then return false end
  local state = redis.call('HMGET', key.slot(slot), 'job', 'seq')
  return state[1] == job and tonumber(state[2]) == seq
end
