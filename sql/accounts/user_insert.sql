-- Creates a user, with credentials when there is a hash. $1 text: username; $2 text: user_type; $3 text or null: email;
-- $4 text: tenant; $5 text or null: password hash; $6 text: role; $7 text: actor; $8 inet or null: address;
-- $9 boolean: whether the email was not verified.
WITH created AS (
    INSERT INTO {schema}.users (username, user_type, email, role) VALUES ($1, $2, $3, $6) RETURNING id
), credentials AS (
    INSERT INTO posduif.credentials (tenant, user_id, password_hash, unverified_email)
    SELECT $4, id, $5, CASE WHEN $9 THEN $3 END FROM created WHERE $5 IS NOT NULL
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $4, $7, $8, 'user_created', id, jsonb_build_object('username', $1, 'user_type', $2, 'role', $6) FROM created
)
SELECT id FROM created
