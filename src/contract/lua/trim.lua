#!lua flags=allow-oom
-- Moves a trim point on and trims, but never back: a trim that waited while a later one was made would otherwise hide
-- from readers what is gone. Runs on a full Redis, too, since it frees memory. Parts of IDs are compared as texts, since
-- Lua's numbers lose digits beyond 2^53. A key of another type is left alone; its next entry stops the stream.
-- Keys: the checkpoint, the tenant's meta hash, the stream. Arguments: the writer that may trim (empty inside of its own
-- EXEC), the field of the trim point, and the first ID that is kept, or how many of the newest entries are. Returns how
-- many entries were removed.
local CHECKPOINT, META, STREAM = unpack(KEYS)
local writer, field, kept = unpack(ARGV)
if writer ~= '' and redis.call('HGET', CHECKPOINT, 'writer') ~= writer then return 0 end
local function trim(strategy, threshold)
  local removed = redis.pcall('XTRIM', STREAM, strategy, threshold)
  return type(removed) == 'number' and removed or 0
end
local removed = 0
if not string.find(kept, '-', 1, true) then
  removed = trim('MAXLEN', kept)
  if removed == 0 then return 0 end
  kept = redis.call('XRANGE', STREAM, '-', '+', 'COUNT', 1)[1][1]
end
local function below(a, b) if #a ~= #b then return #a < #b end return a < b end
local old_ms, old_seq = string.match(redis.call('HGET', META, field) or '', '^(%d+)-(%d+)$')
local ms, seq = string.match(kept, '^(%d+)-(%d+)$')
if old_ms and (below(ms, old_ms) or (ms == old_ms and below(seq, old_seq))) then return removed end
redis.call('HSET', META, field, kept)
return removed + trim('MINID', kept)
