-- Creates the user of a provider's token. No row when the user exists. $1 text: tenant; $2 uuid: user; $3 text: issuer;
-- $4 text: subject; $5 text: username; $6 text: user_type; $7 text or null: email; $8 text: role;
-- $9 bigint: iat of the token; $10 text: actor; $11 inet or null: address.
WITH created AS (
    INSERT INTO {schema}.users (id, username, user_type, email, role) VALUES ($2, $5, $6, $7, $8)
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), credentials AS (
    INSERT INTO posduif.credentials (tenant, user_id) SELECT $1, id FROM created
    ON CONFLICT (tenant, user_id) DO NOTHING
), linked AS (
    INSERT INTO posduif.identities (tenant, user_id, issuer, subject, claims_at) SELECT $1, id, $3, $4, $9 FROM created
    ON CONFLICT (tenant, user_id) DO NOTHING
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, $10, $11, 'user_created', id,
        jsonb_build_object('username', $5, 'user_type', $6, 'role', $8, 'issuer', $3, 'subject', $4)
    FROM created
)
SELECT id FROM created
