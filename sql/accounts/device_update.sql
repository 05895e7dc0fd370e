-- Changes what a device of the user is called and its key; one row when there is such a device that is not revoked.
-- $1 uuid: user; $2 text: device id; $3 text or null: name; $4 text or null: public key; null leaves it as it is.
UPDATE {schema}.devices
SET name = coalesce($3, name), public_key = coalesce($4, public_key)
WHERE user_id = $1 AND device_id = $2 AND revoked_at IS NULL
RETURNING device_id
