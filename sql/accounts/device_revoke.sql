-- Revokes a device in the directory and in the tenant; no row when it is revoked already. $1 text: tenant; $2 text: device id.
WITH directory AS (
    UPDATE posduif.devices SET revoked_at = now() WHERE tenant = $1 AND device_id = $2 AND revoked_at IS NULL
)
UPDATE {schema}.devices SET revoked_at = now() WHERE device_id = $2 AND revoked_at IS NULL
RETURNING user_id
