-- When places were seen that Postgres does not know of yet. Arguments: ms that a stream is held, ms for which who is gone
-- is remembered, most places to give, then place and time of each that was written since. Gives the same of others.
for i = 4, #ARGV, 2 do
  local seen = redis.call('ZSCORE', SEEN, ARGV[i])
  if not seen or text(tonumber(seen)) == ARGV[i + 1] then redis.call('SREM', UNWRITTEN, ARGV[i]) end
end
sweep(tonumber(ARGV[1]), 200)
save()
local old = text(now - ARGV[2])
local trimmed = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', GONE, '-inf', old, 'LIMIT', 0, 500)) do
  trimmed = math.max(trimmed, tonumber(redis.call('ZSCORE', CHANGED, id) or '0'))
  redis.call('ZREM', GONE, id)
  redis.call('ZREM', CHANGED, id)
  redis.call('HDEL', USERS, id)
end
if trimmed > tonumber(redis.call('HGET', USERS, 'trimmed') or '0') then
  redis.call('HSET', USERS, 'trimmed', text(trimmed))
end
redis.call('ZREMRANGEBYSCORE', SEEN, '-inf', old)
local reply = {}
for _, member in ipairs(redis.call('SRANDMEMBER', UNWRITTEN, ARGV[3])) do
  local seen = redis.call('ZSCORE', SEEN, member)
  if seen then
    reply[#reply + 1], reply[#reply + 2] = member, text(tonumber(seen))
  else
    redis.call('SREM', UNWRITTEN, member)
  end
end
return reply
