-- What all scripts of presence begin with. The tenant's keys:
-- streams:   sorted set, `<user>/<place>/<stream>` by the ms since 1970 at which it is over unless a node holds it
-- users:     hash, user -> `<status> <last seen> [<place>/<flag>/<streams>/<last seen> ...]`; also `epoch`, `version`
--            (of the last change of any user's status) and `trimmed` (the last version whose user was forgotten)
-- changed:   sorted set, user by the version at which its status became what it is
-- gone:      sorted set, users who are offline by the ms since 1970 at which they became so
-- seen:      sorted set, `<user>/<place>` by the ms since 1970 at which its last stream was seen
-- unwritten: set, members of `seen` that Postgres does not know yet
-- The clock is Redis' own, so that nodes need not agree on the time.
local STREAMS, USERS, CHANGED, GONE, SEEN, UNWRITTEN = unpack(KEYS)
-- Most places of a user; beyond it the oldest is dropped. Each change writes all of them.
local PLACES_MAX = 200
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)

local function text(number) return string.format('%.0f', number) end

local function split(member) return string.match(member, '^([^/]+)/(.+)/[^/]+$') end

local loaded, order = {}, {}

-- Adds a place, as the newest of its user.
local function add_place(user, place, at)
  user.last = user.last + 1
  at.age = user.last
  user.places[place] = at
end

local function user_of(id)
  local user = loaded[id]
  if user then return user end
  user = {status = 'offline', seen = 0, places = {}, last = 0}
  local record = redis.call('HGET', USERS, id)
  if record then
    user.known = true
    local words = string.gmatch(record, '%S+')
    user.status, user.seen = words(), tonumber(words())
    for word in words do
      local place, flag, streams, seen = string.match(word, '^(.+)/(%a+)/(%d+)/(%d+)$')
      add_place(user, place, {flag = flag, streams = tonumber(streams), seen = tonumber(seen)})
    end
  end
  loaded[id] = user
  order[#order + 1] = id
  return user
end

-- Writes the users that were loaded. A user whose status changed gets the next version.
local function save()
  local version
  for _, id in ipairs(order) do
    local user = loaded[id]
    local status, words, names = 'offline', {}, {}
    for place in pairs(user.places) do names[#names + 1] = place end
    table.sort(names, function(a, b) return user.places[a].age < user.places[b].age end)
    for i = math.max(1, #names - PLACES_MAX + 1), #names do
      local at = user.places[names[i]]
      if at.flag == 'online' then status = 'online' elseif status == 'offline' then status = 'away' end
      words[#words + 1] = names[i] .. '/' .. at.flag .. '/' .. text(at.streams) .. '/' .. text(at.seen)
    end
    if status ~= user.status then
      if not version then
        version = math.max(micros, tonumber(redis.call('HGET', USERS, 'version') or '0') + 1)
        redis.call('HSETNX', USERS, 'epoch', text(micros))
      else
        version = version + 1
      end
      redis.call('ZADD', CHANGED, text(version), id)
      if status == 'offline' then
        redis.call('ZADD', GONE, text(now), id)
      elseif user.status == 'offline' then
        redis.call('ZREM', GONE, id)
      end
      user.status = status
    end
    if user.known or status ~= 'offline' then
      redis.call('HSET', USERS, id, table.concat({status, text(user.seen), unpack(words)}, ' '))
    end
  end
  if version then redis.call('HSET', USERS, 'version', text(version)) end
  loaded, order = {}, {}
end

-- Takes away streams that are over, up to so many; gives how many. `ttl` ms before its time a stream was held last.
local function sweep(ttl, most)
  local over = redis.call('ZRANGEBYSCORE', STREAMS, '-inf', text(now), 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #over, 2 do
    redis.call('ZREM', STREAMS, over[i])
    local id, place = split(over[i])
    local user = user_of(id)
    local at = user.places[place]
    if at then
      at.streams = at.streams - 1
      at.seen = math.max(at.seen, tonumber(over[i + 1]) - ttl)
      if at.streams <= 0 then
        user.places[place] = nil
        user.seen = math.max(user.seen, at.seen)
        redis.call('ZADD', SEEN, 'GT', text(at.seen), id .. '/' .. place)
        redis.call('SADD', UNWRITTEN, id .. '/' .. place)
      end
    end
  end
  return #over / 2
end
