-- Let a script write although the server's memory is full.
-- keys: queue
--
-- Redis refuses what may take memory, in a script too, but only before its first write: half a
-- script would be worse. Only finishing and cleaning up free memory, so they begin with a write that
-- takes none. Those that bring data (create, put_block) do not: they are refused, and say so.
local function write_when_full() redis.call('HDEL', key.queue(), '') end
