-- Tell a worker's supervisor what to do: stop, or cancel a slot's tasks of a job.
-- keys: control
--
-- A supervisor reads words without taking them off, and deletes those that it obeyed: a word that
-- is popped is lost with its reply. So the same word may come twice, and is obeyed twice.
local WORD_LIFE = 3600 * 1000

local function tell_worker(worker, verb, slot, job)
  redis.call('XADD', key.control(worker), '*', 'verb', verb, 'slot', slot, 'job', job)
  redis.call('PEXPIRE', key.control(worker), WORD_LIFE)
end
