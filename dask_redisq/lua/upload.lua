-- Store a file for all workers, those that join later too.
-- keys: queue files
-- args: name data
-- returns: the number of this state of the files; jobs that are made from now on see it
--@include expire
redis.call('HSET', key.files(), arg.name, arg.data)
local number = redis.call('HINCRBY', key.queue(), 'files', 1)
renew_queue()
return number
