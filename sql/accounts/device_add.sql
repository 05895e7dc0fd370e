-- Adds a device with its directory entry to a user who is locked. A device of the same user is added again: its former
-- token and key become invalid, and its public key stays. One row with the reasons if it may not be added.
-- $1 text: device id; $2 uuid: user; $3 text or null: name; $4 text or null: type; $5 text or null: public key;
-- $6 jsonb or null: info; $7 text: tenant; $8 bytea: SHA-256 of the token; $9 bigint: most devices; $10 text: actor;
-- $11 inet or null: address; $12 bytea or null: the key by which the device proves itself, which replaces a former one.
WITH former AS (
    SELECT user_id FROM {schema}.devices WHERE device_id = $1
), others AS (
    SELECT count(*) < $9 AS has_room FROM {schema}.devices WHERE user_id = $2 AND device_id <> $1 AND revoked_at IS NULL
), device AS (
    INSERT INTO {schema}.devices AS known (device_id, user_id, name, device_type, public_key, device_info)
    SELECT $1, $2, $3, coalesce($4, 'mobile'), $5, coalesce($6, '{}') FROM others WHERE has_room
    ON CONFLICT (device_id) DO UPDATE
        SET name = EXCLUDED.name, device_type = coalesce($4, known.device_type),
            public_key = coalesce(known.public_key, EXCLUDED.public_key), device_info = coalesce($6, known.device_info),
            created_at = now(), revoked_at = NULL
        WHERE known.user_id = EXCLUDED.user_id
          AND coalesce(known.public_key = EXCLUDED.public_key, true)
    RETURNING device_id, user_id
), directory AS (
    INSERT INTO posduif.devices (tenant, device_id, user_id, token_hash, auth_key)
    SELECT $7, device_id, user_id, $8, $12 FROM device
    ON CONFLICT (tenant, device_id) DO UPDATE
        SET user_id = EXCLUDED.user_id, token_hash = EXCLUDED.token_hash, auth_key = EXCLUDED.auth_key,
            issued_at = now(), first_used_at = NULL, revoked_at = NULL
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $7, $10, $11, 'device_added', device_id,
           jsonb_build_object('user_id', user_id, 'is_new', NOT EXISTS (SELECT FROM former))
    FROM device
)
SELECT EXISTS (SELECT FROM device) AS is_added, has_room, EXISTS (SELECT FROM former WHERE user_id = $2) AS is_own FROM others
