-- Replaces a user's password hash by one of another cost, unless the password was changed meanwhile. $1 text: tenant;
-- $2 uuid: user; $3 text: the verified hash; $4 text: the new hash.
UPDATE posduif.credentials SET password_hash = $4, updated_at = now()
WHERE tenant = $1 AND user_id = $2 AND password_hash = $3
