-- Creates an enrollment and its token, if the creator may; one row with the reasons if not. Members enroll devices for
-- themselves, web users also new users; admins enroll for anybody. The creator is locked, so that none is created while
-- the creator is disabled.
-- $1 uuid: creator; $2 uuid or null: the user of the device; $3 timestamptz: end; $4 bytea: SHA-256 of the token;
-- $5 text: tenant; $6 text: actor; $7 inet or null: address.
WITH creator AS (
    SELECT id, role = 'admin' OR coalesce(id = $2, user_type = 'web') AS is_allowed
    FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
    FOR SHARE
), owner AS (
    SELECT id FROM {schema}.users WHERE id = $2 AND deleted_at IS NULL
), created AS (
    INSERT INTO {schema}.enrollments (created_by, user_id, expires_at)
    SELECT id, $2, $3 FROM creator WHERE is_allowed AND ($2 IS NULL OR EXISTS (SELECT FROM owner))
    RETURNING id, expires_at
), token AS (
    INSERT INTO posduif.enrollment_tokens (token_hash, tenant, enrollment_id) SELECT $4, $5, id FROM created
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $5, $6, $7, 'enrollment_created', id, jsonb_build_object('user_id', $2) FROM created
)
SELECT (SELECT is_allowed FROM creator) AS is_allowed,
       (SELECT id FROM created) AS id,
       (SELECT expires_at FROM created) AS expires_at
