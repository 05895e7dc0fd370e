-- Applies the role of a provider's token, unless that of a newer one was applied. $1 text: tenant; $2 uuid: user;
-- $3 text: role; $4 bigint: iat of the token; $5 text: issuer; $6 text: actor; $7 inet or null: address.
WITH newer AS (
    UPDATE posduif.identities SET claims_at = $4 WHERE tenant = $1 AND user_id = $2 AND claims_at < $4
    RETURNING user_id
), changed AS (
    UPDATE {schema}.users SET role = $3, updated_at = now()
    WHERE id IN (SELECT user_id FROM newer) AND role <> $3 AND deleted_at IS NULL
    RETURNING id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, $6, $7, 'role_changed', id, jsonb_build_object('role', $3, 'issuer', $5) FROM changed
)
SELECT user_id FROM newer
