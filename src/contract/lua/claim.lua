-- Takes what is due at the webhook, so that no other engine does for a while. Keys: what is due, how often each was tried, the
-- push stream. Arguments: ms, most entries. Gives the time, when the next one is due (empty: never), and of each entry its
-- id, how often it is tried with this time, and its fields.
local DUE, TRIES, PUSH = unpack(KEYS)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end
local entries = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', text(now), 'LIMIT', 0, ARGV[2])) do
  local entry = redis.call('XRANGE', PUSH, id, id)[1]
  if entry then
    redis.call('ZADD', DUE, text(now + ARGV[1]), id)
    entries[#entries + 1] = {id, redis.call('HINCRBY', TRIES, id, 1), entry[2]}
  else
    -- Trimmed before it was sent.
    redis.call('ZREM', DUE, id)
    redis.call('HDEL', TRIES, id)
  end
end
local first = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
return {text(now), first[2] and text(tonumber(first[2])) or '', entries}
