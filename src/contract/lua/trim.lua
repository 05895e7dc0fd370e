-- Moves a trim point on and trims, but never back: a trim that waited while a later one was made would otherwise hide
-- from readers what is gone. Runs on a full Redis, too, since it frees memory. A key of another type is left alone; its
-- next entry stops the stream.
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
local old = redis.call('HGET', META, field)
if old and string.match(old, '^%d+%-%d+$') and before(kept, old) then return removed end
redis.call('HSET', META, field, kept)
return removed + trim('MINID', kept)
