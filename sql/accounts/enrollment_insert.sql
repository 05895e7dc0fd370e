-- Creates an enrollment and its token, if the creator may; one row with the reasons if not.
-- $1 uuid: creator; $2 uuid or null: the user of the device; $3 timestamptz: end; $4 bytea: SHA-256 of the token;
-- $5 text: tenant.
WITH creator AS (
    SELECT id FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
), owner AS (
    SELECT id, user_type FROM {schema}.users WHERE id = $2 AND deleted_at IS NULL
), created AS (
    INSERT INTO {schema}.enrollments (created_by, user_id, expires_at)
    SELECT creator.id, $2, $3
    FROM creator
    WHERE $2 IS NULL OR EXISTS (SELECT FROM owner WHERE owner.id = creator.id OR owner.user_type = 'mobile')
    RETURNING id, expires_at
), token AS (
    INSERT INTO posduif.enrollment_tokens (token_hash, tenant, enrollment_id) SELECT $4, $5, id FROM created
)
SELECT EXISTS (SELECT FROM creator) AS creator_is_active,
       EXISTS (SELECT FROM owner) AS user_exists,
       (SELECT expires_at FROM created) AS expires_at
