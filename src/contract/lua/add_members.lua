-- Adds a user's memberships from Postgres to those that the publisher has recorded since the mark, and forgets the ends that
-- it recorded. Does nothing if the memberships were marked again or added by another reader.
-- Keys: the user's memberships. Arguments: the mark, up to where Postgres was seen, and the groups.
local MEMBERS, mark, since = KEYS[1], ARGV[1], ARGV[2]
if redis.call('HGET', MEMBERS, '.marked') ~= mark then return 0 end
if redis.call('HEXISTS', MEMBERS, '.since') == 1 then return 0 end
for at = 3, #ARGV do redis.call('HSETNX', MEMBERS, ARGV[at], since) end
local fields = redis.call('HGETALL', MEMBERS)
for at = 1, #fields, 2 do
  if fields[at + 1] == '-' then redis.call('HDEL', MEMBERS, fields[at]) end
end
redis.call('HSET', MEMBERS, '.since', since)
return 1
