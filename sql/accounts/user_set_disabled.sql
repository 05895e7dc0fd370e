-- Disables a user, or lets one act again; one row when that changes anything. The log tells every engine of it.
-- $1 uuid: user; $2 boolean: disabled.
UPDATE {schema}.users SET disabled_at = CASE WHEN $2 THEN now() END, updated_at = now()
WHERE id = $1 AND deleted_at IS NULL AND (disabled_at IS NOT NULL) <> $2
RETURNING id
