-- Creates the stream of a group unless there is one.
-- Keys: the group's stream, the tenant's groups that have a stream. Arguments: the group, the stream ID, and the commit
-- time in µs since 1970.
create(KEYS[1], KEYS[2], unpack(ARGV))
return 1
