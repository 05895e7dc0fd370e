#!lua flags=allow-oom
-- Begins a term: takes over the checkpoint for a new writer, and records at which position the former writer's term ended.
-- One step, so that no batch of the former writer is between the two; on a full Redis, too, which the engine then frees.
-- The latest changes of memberships are complete from here on, or from where the former writer kept them of the same groups.
-- Keys: the checkpoint, the ended terms. Arguments: the new writer, the run_id of this Redis, how many ended terms are
-- kept, and the groups. Returns the number of the new term.
local old = redis.call('HMGET', KEYS[1], 'writer', 'term', 'position', 'memberships')
local number = tonumber(old[2] or 0)
if old[1] and old[3] then
  -- Earlier versions named writers otherwise, and their cursors name no term.
  local term = string.match(old[1], '^%x+$') and #old[1] == 16 and old[1] or string.rep('0', 16)
  redis.call('HSET', KEYS[2], term, string.format('%d %s', number, old[3]))
  local ended = redis.call('HGETALL', KEYS[2])
  for i = 1, #ended, 2 do
    if tonumber(string.match(ended[i + 1], '^%d+') or 0) <= number - tonumber(ARGV[3]) then
      redis.call('HDEL', KEYS[2], ended[i])
    end
  end
end
local writer, groups, since = string.match(old[4] or '', '^(%x+) (%x+) (%S+)$')
if not writer or writer ~= old[1] or groups ~= ARGV[4] then since = old[3] or '0-0' end
local memberships = string.format('%s %s %s', ARGV[1], ARGV[4], since)
redis.call('HSET', KEYS[1], 'writer', ARGV[1], 'run_id', ARGV[2], 'term', string.format('%d', number + 1),
  'memberships', memberships)
return number + 1
