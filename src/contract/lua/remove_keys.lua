-- Removes keys of a tenant that was dropped, unless there is one of its name again, whose meta hash the publisher has written.
-- Keys: the meta hash, and those to remove. Returns how many were removed, or -1.
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
return redis.call('UNLINK', unpack(KEYS, 2))
