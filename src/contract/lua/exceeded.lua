#!lua flags=allow-oom
-- Replaces the list of tenants that use more than their budget, on a full Redis, too.
-- Keys: the checkpoint, the list. Arguments: the writer that may replace it, ms until it is forgotten, then each tenant and
-- what is said of it. Returns whether it was replaced.
if redis.call('HGET', KEYS[1], 'writer') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if #ARGV > 2 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return 1
