-- Moves a trim point on and trims, but never back: a trim that waited while a later one was made would otherwise hide
-- from readers what is gone. Parts of IDs are compared as texts, since Lua's numbers lose digits beyond 2^53. A key of
-- another type is left alone; its next entry stops the stream.
-- Keys: the tenant's meta hash, the stream. Arguments: the field of the trim point, the first ID that is kept. Returns
-- how many entries were removed.
local function below(a, b) if #a ~= #b then return #a < #b end return a < b end
local old_ms, old_seq = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+)-(%d+)$')
local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
if old_ms and (below(ms, old_ms) or (ms == old_ms and below(seq, old_seq))) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local trimmed = redis.pcall('XTRIM', KEYS[2], 'MINID', ARGV[2])
if type(trimmed) == 'table' then return 0 end
return trimmed
