-- Creates the stream of a group by an entry `reset`, unless there is one.
local function create(stream, groups, group, id, time)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XADD', stream, id, 'op', 'reset', 'ts', time)
  end
  redis.call('SADD', groups, group)
end
