-- Records that a user joined a group: among the tenant's latest changes, and in the user's memberships, if they are kept and
-- not too many. Then it creates the group's stream if it is missing.
-- Keys: the latest changes, the user's memberships, the group's stream, the tenant's groups that have a stream. Arguments:
-- the change, the most of them, the group, the stream ID, the commit time in µs since 1970, and the most groups of a user.
local LOG, MEMBERS, STREAM, GROUPS = unpack(KEYS)
local change, changes_max, group, id, time, max = unpack(ARGV)
remember(LOG, change, changes_max)
if redis.call('EXISTS', MEMBERS) == 0 then return 0 end
if redis.call('HSET', MEMBERS, group, id) == 1 and too_many(MEMBERS, max) then return 0 end
create(STREAM, GROUPS, group, id, time)
return 1
