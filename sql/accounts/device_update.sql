-- Updates name and public key of a device of the user; no row when there is none or it is revoked.
-- $1 uuid: user; $2 text: device id; $3 text or null: name; $4 text or null: public key; null keeps the value.
UPDATE {schema}.devices
SET name = coalesce($3, name), public_key = coalesce($4, public_key)
WHERE user_id = $1 AND device_id = $2 AND revoked_at IS NULL
RETURNING device_id
