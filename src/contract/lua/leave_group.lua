-- Records that a user left a group: among the tenant's latest changes, and in the user's memberships, if they are kept. Until
-- those from Postgres are added, the end is kept beside them: Postgres may have been read before it.
-- Keys: the latest changes, the user's memberships. Arguments: the change and the most of them, the group, and the most
-- groups of a user.
local LOG, MEMBERS = unpack(KEYS)
local change, changes_max, group, max = unpack(ARGV)
remember(LOG, change, changes_max)
if redis.call('EXISTS', MEMBERS) == 0 then return 0 end
if redis.call('HGET', MEMBERS, '.since') then
  return redis.call('HDEL', MEMBERS, group)
end
if redis.call('HSET', MEMBERS, group, '-') == 1 and too_many(MEMBERS, max) then return 0 end
return 1
