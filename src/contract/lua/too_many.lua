-- Forgets a user's memberships if they are too many: the next snapshot reads them from Postgres, and refuses such a user.
local function too_many(members, max)
  -- Four of the fields are no groups.
  if #redis.call('HGETALL', members) / 2 - 4 <= tonumber(max) then return false end
  redis.call('DEL', members)
  return true
end
