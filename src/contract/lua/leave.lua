-- Counts streams as open for as long as the grace from now on. Arguments: ms of grace, ms that a stream is held, streams.
for i = 3, #ARGV do
  if redis.call('ZSCORE', STREAMS, ARGV[i]) then
    redis.call('ZADD', STREAMS, text(now + ARGV[1]), ARGV[i])
    local id, place = split(ARGV[i])
    local at = user_of(id).places[place]
    if at then at.seen = math.max(at.seen, now) end
  end
end
sweep(tonumber(ARGV[2]), 200)
save()
