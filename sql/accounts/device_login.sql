-- Registers or updates the device of a login. No row when the id belongs to another user's or a revoked device, or the
-- user has too many devices. $1 uuid: user; $2 text: device id; $3 text or null: name; $4 text or null: type; $5 text or
-- null: public key; $6 text: default type of a new device; $7 bigint: most devices; $8 text: tenant; $9 text: actor;
-- $10 inet or null: address.
WITH known AS (
    UPDATE {schema}.devices
    SET name = coalesce($3, name), device_type = coalesce($4, device_type), public_key = coalesce($5, public_key),
        last_seen_at = now()
    WHERE device_id = $2 AND user_id = $1 AND revoked_at IS NULL
    RETURNING *
), made AS (
    INSERT INTO {schema}.devices (device_id, user_id, name, device_type, public_key, last_seen_at)
    SELECT $2, $1, $3, coalesce($4, $6), $5, now()
    WHERE NOT EXISTS (SELECT FROM known)
      AND (SELECT count(*) FROM {schema}.devices WHERE user_id = $1 AND revoked_at IS NULL) < $7
    ON CONFLICT (device_id) DO NOTHING
    RETURNING *
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $8, $9, $10, 'device_added', device_id, jsonb_build_object('user_id', user_id, 'is_new', true) FROM made
)
SELECT found.*, u.username,
       EXISTS (SELECT FROM posduif.devices directory
               WHERE directory.tenant = $8 AND directory.device_id = found.device_id
                 AND directory.auth_key IS NOT NULL) AS has_auth_key
FROM (SELECT false AS is_new, known.* FROM known UNION ALL SELECT true, made.* FROM made) found
JOIN {schema}.users u ON u.id = found.user_id
