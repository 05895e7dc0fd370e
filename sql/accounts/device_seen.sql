-- Records that a device of the user was seen; no row when there is none or it is revoked. $1 uuid: user;
-- $2 text: device id.
UPDATE {schema}.devices SET last_seen_at = now()
WHERE device_id = $2 AND user_id = $1 AND revoked_at IS NULL
RETURNING device_id
