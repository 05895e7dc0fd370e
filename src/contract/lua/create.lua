-- Creates a stream by an entry `reset`, unless there is one.
local function create_stream(stream, id, time)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XADD', stream, id, 'op', 'reset', 'ts', time)
  end
end

-- The same for the stream of a group.
local function create(stream, groups, group, id, time)
  create_stream(stream, id, time)
  redis.call('SADD', groups, group)
end
