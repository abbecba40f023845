-- Hold a job still, so that it can be read, recomputed and rebuilt.
-- keys: job active
-- args: job generation previous life
-- returns: msgpack {status, n, block, blocks, acked, history, pure}; status: 'frozen'; 'busy', another holds it; 'over', it was rebuilt so; 'unsealed'; or the state of a job that does not run ('' when it is gone)
--@include full
--@include clock
--
-- The graph cannot be read by a script, so a rebuild computes outside while slots go on: a finish
-- that is accepted in between would be overwritten. While the job is frozen nothing of it is
-- accepted, leased or made ready; leases that come back are forgotten, and their tasks found
-- unfinished. Who dies while he holds it is replaced after `life` ms, under another generation; who
-- reads it anew takes it over from himself, `previous`.
--
-- A copy of this call changes nothing. One that comes before the rebuild must not take '2' from
-- `damaged` (lib/damage.lua); one that comes after it would hold the job, and nobody would let it go.
write_when_full()
local job = arg.job
local meta = redis.call('HMGET', key.job(job),
  'state', 'sealed', 'frozen', 'frozen_at', 'n', 'block', 'blocks', 'acked', 'history', 'pure', 'gen')
local function answer(status)
  return cmsgpack.pack({status, tonumber(meta[5]) or 0, tonumber(meta[6]) or 0, tonumber(meta[7]) or 0,
    tonumber(meta[8]) or 0, meta[9] and 1 or 0, meta[10] == '0' and 0 or 1})
end
if meta[1] ~= 'running' then return answer(meta[1] or '') end
-- Only its client has the rest of the graph, and it goes on from what it finds here.
if not meta[2] then return answer('unsealed') end
if meta[3] == arg.generation then return answer('frozen') end
if meta[11] == arg.generation then return answer('over') end
local now = now_ms()
if meta[3] and meta[3] ~= arg.previous and now < meta[4] + arg.life then return answer('busy') end
redis.call('HSET', key.job(job), 'frozen', arg.generation, 'frozen_at', now, 'damaged', '1')
redis.call('ZREM', key.active(), job)
return answer('frozen')
