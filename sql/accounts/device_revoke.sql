-- Revokes a device in the directory and in the tenant; no row when it is revoked already. $1 text: tenant;
-- $2 text: device id; $3 text: actor; $4 inet or null: address.
WITH directory AS (
    UPDATE posduif.devices SET revoked_at = now() WHERE tenant = $1 AND device_id = $2 AND revoked_at IS NULL
), revoked AS (
    UPDATE {schema}.devices SET revoked_at = now() WHERE device_id = $2 AND revoked_at IS NULL
    RETURNING user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, $3, $4, 'device_revoked', $2, jsonb_build_object('user_id', user_id) FROM revoked
)
SELECT user_id FROM revoked
