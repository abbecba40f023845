-- Store a file for all workers, those that join later too.
-- keys: queue files
-- args: name data at
-- returns: the number of this state of the files; jobs that are made from now on see it
--@include expire
--
-- `at`: when its client began, by the server's clock in us. W uploads a file, loses its connection and
-- uploads it again, then an edited one: a late copy of the first call must not bring the old one back.
-- It is the number of the state, too: a server that lost all of it must not count from 1 again.
local last = tonumber(redis.call('HGET', key.queue(), 'file:' .. arg.name) or 0)
if tonumber(arg.at) > last then
  redis.call('HSET', key.files(), arg.name, arg.data)
  redis.call('HSET', key.queue(), 'file:' .. arg.name, arg.at)
  redis.call('HSET', key.queue(), 'files', arg.at)
end
renew_queue()
return tonumber(redis.call('HGET', key.queue(), 'files'))
