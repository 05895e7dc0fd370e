-- Creates a device and its directory entry and marks the enrollment used; no row when the id is another user's device.
-- An existing device of the same user gets the new token, and its former token becomes invalid.
-- $1 text: device id; $2 uuid: user; $3 text or null: name; $4 text or null: public key; $5 jsonb: info; $6 text: tenant;
-- $7 bytea: SHA-256 of the token; $8 uuid: enrollment.
WITH device AS (
    INSERT INTO {schema}.devices AS known (device_id, user_id, name, public_key, device_info)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (device_id) DO UPDATE
        SET name = EXCLUDED.name, public_key = EXCLUDED.public_key, device_info = EXCLUDED.device_info,
            created_at = now(), revoked_at = NULL
        WHERE known.user_id = EXCLUDED.user_id
    RETURNING device_id, user_id
), directory AS (
    INSERT INTO posduif.devices (tenant, device_id, user_id, token_hash)
    SELECT $6, device_id, user_id, $7 FROM device
    ON CONFLICT (tenant, device_id) DO UPDATE
        SET user_id = EXCLUDED.user_id, token_hash = EXCLUDED.token_hash, issued_at = now(), first_used_at = NULL,
            revoked_at = NULL
)
UPDATE {schema}.enrollments SET used_at = clock_timestamp(), device_id = device.device_id
FROM device
WHERE id = $8
RETURNING device.device_id
