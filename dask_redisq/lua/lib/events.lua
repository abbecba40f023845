-- Note what happens to a job's tasks, if its client asked for that: it has callbacks.
-- keys: job events slot
--@include life
--
-- One entry per chunk. Entries are never removed before the job is: the client counts them, and one
-- that it reads twice, since the server came back older, it knows by its tasks.

-- `done`: these tasks have a result; else they were leased. Or a word, for who asked for all of it:
--   'died', 'timeout', 'raised': what it did, and it may run again
--   'back': the slot is gone, and these tasks run again
--   'dropped': a result of theirs came that is not used, since there was one
local function note_event(job, slot, done, tasks)
  local worker = redis.call('HGET', key.slot(slot), 'worker') or ''
  redis.call('RPUSH', key.events(job), cmsgpack.pack({slot, worker, done, tasks}))
  redis.call('PEXPIRE', key.events(job), life_of(job))
end
