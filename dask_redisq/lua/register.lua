-- Register a worker, or one slot of it; only a supervisor does this.
-- keys: queue workers alive worker_slots slots slot
-- args: worker info expiry slot seq tags
-- returns: 'ok'
--@include full
--@include expire
--
-- `slot` = '' registers the worker alone. A slot that was registered before stays as it is, so
-- that a replay does not forget its lease; unless the server lost what it knew of it. `seq`: its last call that was answered, 0 for a new one; an
-- older one that is still under way is refused.
write_when_full()
redis.call('HSET', key.workers(), arg.worker, arg.info)
redis.call('SET', key.alive(arg.worker), '1', 'PX', arg.expiry)
redis.call('HSETNX', key.queue(), 'schema', '1')
local fresh = arg.slot ~= '' and redis.call('SADD', key.slots(), arg.slot) == 1
if fresh or arg.slot ~= '' and redis.call('HEXISTS', key.slot(arg.slot), 'seq') == 0 then
  redis.call('SADD', key.worker_slots(arg.worker), arg.slot)
  redis.call('HSET', key.slot(arg.slot), 'worker', arg.worker, 'tags', arg.tags, 'seq', arg.seq,
    'answer', cmsgpack.pack({'stale', {}, false, 0}), 'steady', '0')
end
redis.call('PEXPIRE', key.worker_slots(arg.worker), DAY)
if arg.slot ~= '' then redis.call('PEXPIRE', key.slot(arg.slot), DAY) end
renew_queue()
return 'ok'
