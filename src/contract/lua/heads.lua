-- The ID of the first entry of each stream from an ID on, or nothing.
-- Keys: the streams. Arguments: an ID for each.
local heads = {}
for at, stream in ipairs(KEYS) do
  local found = redis.call('XRANGE', stream, ARGV[at], '+', 'COUNT', 1)
  heads[at] = found[1] and found[1][1] or ''
end
return heads
