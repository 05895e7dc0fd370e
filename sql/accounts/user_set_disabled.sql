-- Disables or enables a user; no row when nothing changes. Engines receive the change through the log.
-- $1 uuid: user; $2 boolean: disabled.
UPDATE {schema}.users SET disabled_at = CASE WHEN $2 THEN now() END, updated_at = now()
WHERE id = $1 AND deleted_at IS NULL AND (disabled_at IS NOT NULL) <> $2
RETURNING id
