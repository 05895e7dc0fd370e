-- Replaces a tenant's meta hash: its generation and its state. The trim points go, since they lie before the generation. What
-- says when memberships must be read again stays: Postgres may not show why yet.
-- Keys: the meta hash. Arguments: the generation and the state.
local META = KEYS[1]
local reset = redis.pcall('HMGET', META, 'groups', 'groups_xid')
-- A key of the wrong type is replaced, too.
if reset.err then reset = {} end
redis.call('UNLINK', META)
redis.call('HSET', META, 'generation', ARGV[1], 'state', ARGV[2])
if reset[1] then redis.call('HSET', META, 'groups', reset[1], 'groups_xid', reset[2] or '0') end
return 1
