-- Adds a user's memberships as of the mark to those that the publisher has recorded since, and forgets the ends that it
-- recorded. Does nothing if the memberships were marked again or added by another reader. Forgets them if they are too many
-- together.
-- Keys: the user's memberships. Arguments: the mark, up to where Postgres was seen, the most groups of a user, and the groups,
-- each with the position behind which its stream is read.
local MEMBERS, mark, since, max = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', MEMBERS, '.marked') ~= mark then return 0 end
if redis.call('HGET', MEMBERS, '.since') then return 0 end
for at = 4, #ARGV, 2 do redis.call('HSETNX', MEMBERS, ARGV[at], ARGV[at + 1]) end
local fields = redis.call('HGETALL', MEMBERS)
for at = 1, #fields, 2 do
  if fields[at + 1] == '-' then redis.call('HDEL', MEMBERS, fields[at]) end
end
redis.call('HSET', MEMBERS, '.since', since)
if too_many(MEMBERS, max) then return 0 end
return 1
