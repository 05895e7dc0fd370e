-- Records that a user joined a group, if the user's memberships are kept and not too many, and creates the group's stream if
-- it is missing.
-- Keys: the user's memberships, the group's stream, the tenant's groups that have a stream. Arguments: the group, the
-- stream ID, the commit time in µs since 1970, and the most groups of a user.
local MEMBERS, STREAM, GROUPS = unpack(KEYS)
local group, id, time, max = unpack(ARGV)
if redis.call('EXISTS', MEMBERS) == 0 then return 0 end
if redis.call('HSET', MEMBERS, group, id) == 1 and too_many(MEMBERS, max) then return 0 end
create(STREAM, GROUPS, group, id, time)
return 1
