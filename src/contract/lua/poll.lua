-- What has changed behind a version, each user once, in the order of versions. Arguments: ms that a stream is held, epoch
-- and version that the reader has, most users. Gives epoch, version, how many are present, whether the reader must begin
-- again (the users are then from the beginning), and of each user id, version and record.
sweep(tonumber(ARGV[1]), 200)
save()
local epoch, version, trimmed = unpack(redis.call('HMGET', USERS, 'epoch', 'version', 'trimmed'))
if not epoch then return {'', '0', 0, ARGV[2] ~= '' and 1 or 0} end
local after, restart = ARGV[3], 0
if ARGV[2] ~= epoch or (after ~= '0' and tonumber(after) < tonumber(trimmed or '0')) then after, restart = '0', 1 end
local reply = {epoch, version, redis.call('ZCARD', CHANGED) - redis.call('ZCARD', GONE), restart}
if after ~= version then
  local rows = redis.call('ZRANGEBYSCORE', CHANGED, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
  for i = 1, #rows, 2 do
    reply[#reply + 1] = rows[i]
    reply[#reply + 1] = text(tonumber(rows[i + 1]))
    reply[#reply + 1] = redis.call('HGET', USERS, rows[i])
  end
end
return reply
