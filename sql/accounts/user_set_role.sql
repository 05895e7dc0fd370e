-- Sets a user's role; no row when nothing changes. $1 uuid: user; $2 text: role.
UPDATE {schema}.users SET role = $2, updated_at = now()
WHERE id = $1 AND deleted_at IS NULL AND role <> $2
RETURNING id
