-- Records that a user left a group, if the user's memberships are kept. Until those from Postgres are added, the end is kept
-- beside them: Postgres may have been read before it.
-- Keys: the user's memberships. Arguments: the group, and the most groups of a user.
local MEMBERS, group, max = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', MEMBERS) == 0 then return 0 end
if redis.call('HEXISTS', MEMBERS, '.since') == 1 then
  return redis.call('HDEL', MEMBERS, group)
end
if redis.call('HSET', MEMBERS, group, '-') == 1 and too_many(MEMBERS, max) then return 0 end
return 1
