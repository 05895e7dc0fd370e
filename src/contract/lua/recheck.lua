-- Adds an entry of a batch whose replies were never read, unless the stream holds it. One that begins behind it was
-- created again or trimmed since, and one without entries was trimmed: their readers know.
-- Keys: the stream. Arguments: as of XADD, from the ID on. Gives what XADD gives.
local STREAM, id = KEYS[1], ARGV[1]
local first = redis.call('XRANGE', STREAM, '-', '+', 'COUNT', 1)[1]
if first then
  if before(id, first[1]) then return id end
  if redis.call('XRANGE', STREAM, id, id)[1] then return id end
end
local added = redis.pcall('XADD', STREAM, 'NOMKSTREAM', unpack(ARGV))
if type(added) ~= 'table' or not added.err then return added end
if not first then return id end
-- The stream was stopped, and a later reset shows its readers the hole.
for _, entry in ipairs(redis.call('XRANGE', STREAM, '(' .. id, '+', 'COUNT', 1000)) do
  for field = 1, #entry[2], 2 do
    if entry[2][field] == 'op' and entry[2][field + 1] == 'reset' then return id end
  end
end
return added
