-- Counts streams as open for so long from now on, whether they were known or not. Arguments: ms, streams.
local over = text(now + ARGV[1])
for i = 2, #ARGV do
  if redis.call('ZADD', STREAMS, over, ARGV[i]) == 1 then
    local id, place = split(ARGV[i])
    local user = user_of(id)
    local at = user.places[place]
    if not at then
      at = {flag = 'online', streams = 0, seen = 0}
      add_place(user, place, at)
    end
    at.streams = at.streams + 1
  end
end
save()
