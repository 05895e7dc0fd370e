-- Decides whether a device is to be woken, and says so in the tenant's stream `push`, in one step.
-- Keys: the device's state, the tenant's meta hash, its presence:users and presence:seen, its push stream and what of it
-- is due at the webhook. Arguments: the epoch; the last entry that waits; user; device; ms without a stream; most entries
-- of the stream; whether there is a webhook; then fields of the entry. Gives a word, and what belongs to it.
local DEVICE, META, USERS, SEEN, PUSH, DUE = unpack(KEYS)
local epoch, waits, user, device = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if redis.call('HGET', META, 'state') == 'paused' then return {'paused'} end
local record = redis.call('HGET', USERS, user)
if record and string.find(record, ' ' .. device .. '/', 1, true) then return {'present'} end
local seen = redis.call('ZSCORE', SEEN, user .. '/' .. device)
if seen then
  local time = redis.call('TIME')
  local left = tonumber(seen) + tonumber(ARGV[5]) - (time[1] * 1000 + math.floor(time[2] / 1000))
  if left > 0 then return {'early', math.ceil(left)} end
end

-- How far the device has come in this epoch: what it acknowledged, or was given.
local its_epoch, ack, given, pushed = unpack(redis.call('HMGET', DEVICE, 'epoch', 'ack', 'read', 'pushed'))
local has
if its_epoch == epoch then has = ack end
if given then
  local given_epoch, place = string.match(given, '^(%x+) (.+)$')
  if given_epoch == epoch and (not has or before(has, place)) then has = place end
end
if has and not before(has, waits) then return {'had'} end
-- One until it has synced: in the same epoch beyond what waited then, in a later one at all.
if pushed then
  local pushed_epoch, place = string.match(pushed, '^(%x+) (.+)$')
  if not has or (pushed_epoch == epoch and before(has, place)) then return {'pushed'} end
end
redis.call('HSET', DEVICE, 'pushed', epoch .. ' ' .. waits)
redis.call('EXPIRE', DEVICE, 34560000)
local id = redis.call('XADD', PUSH, 'MAXLEN', '~', ARGV[6], '*', unpack(ARGV, 8))
if ARGV[7] == '1' then redis.call('ZADD', DUE, 0, id) end
return {'triggered', id}
