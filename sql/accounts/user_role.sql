-- The role of a user, unless disabled or deleted. $1 uuid: id.
SELECT role FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
