-- From here on the publisher keeps a user's memberships. Those of another epoch or generation, or of before the last reset of
-- the tenant's readers, are forgotten, and so are too many. Gives what was published when they were marked, nothing
-- without a checkpoint.
-- Keys: the user's memberships, the checkpoint, the tenant's meta hash. Arguments: the most groups of a user.
local MEMBERS, CHECKPOINT, META = unpack(KEYS)
local epoch, position = unpack(redis.call('HMGET', CHECKPOINT, 'epoch', 'position'))
local generation, reset = unpack(redis.call('HMGET', META, 'generation', 'groups'))
if not epoch or not position or not generation then return false end
local known_epoch, known_generation, marked = unpack(redis.call('HMGET', MEMBERS, '.epoch', '.generation', '.marked'))
local is_known = known_epoch == epoch and known_generation == generation and marked
if is_known and not (reset and before(marked, reset)) and not too_many(MEMBERS, ARGV[1]) then return marked end
redis.call('DEL', MEMBERS)
redis.call('HSET', MEMBERS, '.epoch', epoch, '.generation', generation, '.marked', position)
return position
