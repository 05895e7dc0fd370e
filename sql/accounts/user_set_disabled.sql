-- Disables or enables a user and changes the stamp; no row when nothing changes. Engines receive the change through the
-- log. $1 uuid: user; $2 boolean: disabled; $3 text: tenant; $4 text: actor; $5 inet or null: address.
WITH changed AS (
    UPDATE {schema}.users SET disabled_at = CASE WHEN $2 THEN now() END, updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL AND (disabled_at IS NOT NULL) <> $2
    RETURNING id
), stamped AS (
    UPDATE posduif.credentials SET stamp = gen_random_uuid(), stamped_at = clock_timestamp(), kept_session = NULL
    WHERE tenant = $3 AND user_id IN (SELECT id FROM changed)
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $3, $4, $5, CASE WHEN $2 THEN 'user_disabled' ELSE 'user_enabled' END, id FROM changed
)
SELECT id FROM changed
