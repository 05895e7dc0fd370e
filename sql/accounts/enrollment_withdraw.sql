-- Deletes an open enrollment, by its id or its token; no row when there is none that may be deleted.
-- $1 uuid: id or token; $2 bytea: SHA-256 of the token; $3 text: tenant; $4 uuid or null: only by this creator;
-- $5 text: actor; $6 inet or null: address.
WITH withdrawn AS (
    DELETE FROM {schema}.enrollments
    WHERE used_at IS NULL AND ($4 IS NULL OR created_by = $4)
      AND id IN ($1, (SELECT enrollment_id FROM posduif.enrollment_tokens WHERE token_hash = $2 AND tenant = $3))
    RETURNING id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $3, $5, $6, 'enrollment_withdrawn', id FROM withdrawn
)
SELECT id FROM withdrawn
