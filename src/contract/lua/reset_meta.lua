-- Replaces a tenant's meta hash: its generation and its state. The trim points go, since they lie before the generation. What
-- says when memberships must be read again stays: Postgres may not show why yet.
-- Keys: the meta hash. Arguments: the generation and the state.
local META = KEYS[1]
-- A key of the wrong type is replaced, too.
local is_hash = redis.call('TYPE', META).ok == 'hash'
local reset = is_hash and redis.call('HMGET', META, 'groups', 'groups_xid') or {}
redis.call('UNLINK', META)
redis.call('HSET', META, 'generation', ARGV[1], 'state', ARGV[2])
if reset[1] then redis.call('HSET', META, 'groups', reset[1], 'groups_xid', reset[2] or '0') end
return 1
