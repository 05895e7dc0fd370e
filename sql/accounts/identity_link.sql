-- Makes a provider the one that identifies an existing user, unless another does or the user has a password or a device.
-- No row when nothing changes. $1 text: tenant; $2 uuid: user; $3 text: issuer; $4 text: subject; $5 text: actor;
-- $6 inet or null: address.
WITH active AS (
    SELECT id FROM {schema}.users WHERE id = $2 AND deleted_at IS NULL AND disabled_at IS NULL
    FOR SHARE
), linked AS (
    INSERT INTO posduif.identities (tenant, user_id, issuer, subject)
    SELECT $1, u.id, $3, $4 FROM active u
    WHERE NOT EXISTS (SELECT FROM {schema}.devices d WHERE d.user_id = u.id)
    AND NOT EXISTS (
        SELECT FROM posduif.credentials c WHERE c.tenant = $1 AND c.user_id = u.id AND c.password_hash IS NOT NULL
    )
    ON CONFLICT (tenant, user_id) DO NOTHING
    RETURNING user_id
), credentials AS (
    INSERT INTO posduif.credentials (tenant, user_id) SELECT $1, user_id FROM linked
    ON CONFLICT (tenant, user_id) DO NOTHING
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, $5, $6, 'identity_linked', user_id, jsonb_build_object('issuer', $3, 'subject', $4) FROM linked
)
SELECT user_id FROM linked
