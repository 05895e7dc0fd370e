-- Users and how they are. Arguments: ms that a stream is held; then `page`, and the first and the last place of those to
-- give, the last changed first, or `of` and users, or `present`. Gives version, how many there are, and of each user id and
-- record.
while sweep(tonumber(ARGV[1]), 200) == 200 do end
save()
local ids
if ARGV[2] == 'page' then
  ids = redis.call('ZREVRANGE', CHANGED, ARGV[3], ARGV[4])
elseif ARGV[2] == 'of' then
  ids = {unpack(ARGV, 3)}
end
local reply = {redis.call('HGET', USERS, 'version') or '0', redis.call('ZCARD', CHANGED)}
if not ids then
  local all = redis.call('HGETALL', USERS)
  for i = 1, #all, 2 do
    if string.match(all[i + 1], '^online ') or string.match(all[i + 1], '^away ') then
      reply[#reply + 1], reply[#reply + 2] = all[i], all[i + 1]
    end
  end
  return reply
end
for _, id in ipairs(ids) do
  local record = redis.call('HGET', USERS, id)
  if record then reply[#reply + 1], reply[#reply + 2] = id, record end
end
return reply
