-- Tell a worker's supervisor what to do: stop, or cancel a slot's tasks of a job.
-- keys: control
--
-- `seq`: up to which lease of that slot the word goes. A job that failed may be run again, and a word that
-- comes late must not stop its next lease.
--
-- A supervisor reads words without taking them off, and deletes those that it obeyed: a word that
-- is popped is lost with its reply. So the same word may come twice, and is obeyed twice.
local WORD_LIFE = 3600 * 1000

local function tell_worker(worker, verb, slot, job, seq)
  redis.call('XADD', key.control(worker), '*', 'verb', verb, 'slot', slot, 'job', job, 'seq', seq)
  redis.call('PEXPIRE', key.control(worker), WORD_LIFE)
end
