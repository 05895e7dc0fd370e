-- Replaces a tenant's meta hash: its generation and its state. The trim points go, since they lie before the generation. What
-- says when memberships must be read again stays: Postgres may not show why yet. Without it, memberships of before are not
-- used either: a former tenant of this name may have had the same users.
-- Keys: the meta hash. Arguments: the generation, the state, and, except in a new epoch, stream ID and transaction.
local META = KEYS[1]
local reset = redis.pcall('HMGET', META, 'groups', 'groups_xid')
-- A key of the wrong type is replaced, too.
if reset.err then reset = {} end
redis.call('UNLINK', META)
redis.call('HSET', META, 'generation', ARGV[1], 'state', ARGV[2])
if not reset[1] then reset = {ARGV[3], ARGV[4]} end
if reset[1] then redis.call('HSET', META, 'groups', reset[1], 'groups_xid', reset[2] or '0') end
return 1
