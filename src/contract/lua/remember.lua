-- Adds a change of a membership to the tenant's latest ones. Of too many, the first are removed; the set then begins with the
-- stream ID of the last one that is missing.
local function remember(log, change, max)
  local last = redis.call('ZREVRANGE', log, 0, 0, 'WITHSCORES')
  redis.call('ZADD', log, (tonumber(last[2]) or 0) + 1, change)
  if redis.call('ZCARD', log) <= tonumber(max) then return end
  local gone = redis.call('ZRANGE', log, 0, 1)
  redis.call('ZREM', log, gone[1], gone[2])
  redis.call('ZADD', log, 0, string.match(gone[2], '^%S+'))
end
