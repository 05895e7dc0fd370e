-- Records that a user joined a group, if the user's memberships are kept, and creates the group's stream if it is missing.
-- Keys: the user's memberships, the group's stream, the tenant's groups that have a stream. Arguments: the group, the
-- stream ID, and the commit time in µs since 1970.
local MEMBERS, STREAM, GROUPS = unpack(KEYS)
local group, id, time = unpack(ARGV)
if redis.call('EXISTS', MEMBERS) == 0 then return 0 end
redis.call('HSET', MEMBERS, group, id)
create(STREAM, GROUPS, group, id, time)
return 1
