-- Compares stream IDs. Both parts go up to 2^64, which a number of Lua does not hold, so they are compared as texts.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local a1, a2 = string.match(a, '^(%d+)-(%d+)$')
  local b1, b2 = string.match(b, '^(%d+)-(%d+)$')
  if a1 ~= b1 then return less(a1, b1) end
  return less(a2, b2)
end
