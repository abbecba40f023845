-- Tell a registered worker, or all of them, to start its slots anew, each after its task in hand.
-- keys: workers worker_slots
-- args: worker
-- returns: the slots that are to end; `worker` = '' is all workers
--@include full
--@include control
write_when_full()
local slots = {}
for _, worker in ipairs(redis.call('HKEYS', key.workers())) do
  if arg.worker == '' or arg.worker == worker then
    tell_worker(worker, 'restart', '', '', 0)
    for _, slot in ipairs(redis.call('SMEMBERS', key.worker_slots(worker))) do slots[#slots + 1] = slot end
  end
end
return slots
