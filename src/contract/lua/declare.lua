-- What a place says of itself. Without a stream it counts as open for a while, as a stream does that is not held again.
-- Arguments: ms, user, place, status. Gives the user's status.
local user = user_of(ARGV[2])
local at = user.places[ARGV[3]]
local said = ARGV[2] .. '/' .. ARGV[3] .. '/said'
if not at then
  at = {streams = 1, seen = 0}
  add_place(user, ARGV[3], at)
  redis.call('ZADD', STREAMS, text(now + ARGV[1]), said)
elseif redis.call('ZSCORE', STREAMS, said) then
  redis.call('ZADD', STREAMS, text(now + ARGV[1]), said)
end
at.flag = ARGV[4]
save()
return user.status
