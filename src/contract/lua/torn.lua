#!lua flags=allow-oom
-- Records in the checkpoint that Redis ran only parts of a transaction, unless a new epoch has begun since. Any engine may:
-- the present writer, if it is another one, then fails at its next transaction and begins the new epoch. On a full Redis,
-- too. Keys: the checkpoint. Arguments: the number of the epoch, the value of the field. Returns whether it was recorded.
if redis.call('HGET', KEYS[1], 'number') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'torn', ARGV[2])
return 1
