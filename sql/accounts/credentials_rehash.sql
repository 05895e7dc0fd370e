-- Puts a hash of another cost in the place of a user's, unless the password was changed meanwhile. $1 text: tenant;
-- $2 uuid: user; $3 text: the hash that was checked; $4 text: the new one.
UPDATE posduif.credentials SET password_hash = $4, updated_at = now()
WHERE tenant = $1 AND user_id = $2 AND password_hash = $3
