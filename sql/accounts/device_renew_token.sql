-- Replaces the token of a device that has proved itself, unless its token or its key is another by now. One row: whether the
-- device and its user may act, and the user if the token was replaced. Locks are taken in the order of revocations and
-- erasures: user, device, directory. $1 text: tenant; $2 text: device id; $3 bytea: SHA-256 of the former token;
-- $4 bytea: the key; $5 bytea: SHA-256 of the new token; $6 inet: address.
WITH owner AS MATERIALIZED (
    SELECT id FROM {schema}.users
    WHERE id = (SELECT user_id FROM posduif.devices WHERE tenant = $1 AND device_id = $2)
      AND deleted_at IS NULL AND disabled_at IS NULL
    FOR SHARE
), device AS (
    UPDATE {schema}.devices d SET token_renewed_at = clock_timestamp()
    FROM owner
    WHERE d.device_id = $2 AND d.user_id = owner.id AND d.revoked_at IS NULL
      AND EXISTS (SELECT FROM posduif.devices WHERE tenant = $1 AND device_id = $2 AND token_hash = $3 AND auth_key = $4)
    RETURNING d.device_id
), directory AS (
    UPDATE posduif.devices known
    SET token_hash = $5, issued_at = now(), first_used_at = coalesce(first_used_at, now())
    FROM device
    WHERE known.tenant = $1 AND known.device_id = device.device_id
      AND known.token_hash = $3 AND known.auth_key = $4 AND known.revoked_at IS NULL
    RETURNING known.device_id, known.user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, user_id::text, $6, 'device_token_renewed', device_id, jsonb_build_object('user_id', user_id) FROM directory
)
SELECT EXISTS (SELECT FROM {schema}.devices d JOIN owner ON owner.id = d.user_id
               WHERE d.device_id = $2 AND d.revoked_at IS NULL) AS may_act,
       (SELECT user_id FROM directory) AS user_id
