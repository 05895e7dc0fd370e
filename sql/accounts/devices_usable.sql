-- Those of some devices that belong to the user and are not revoked. $1 uuid: user; $2 text[]: device ids.
SELECT device_id FROM {schema}.devices WHERE user_id = $1 AND device_id = ANY ($2) AND revoked_at IS NULL
