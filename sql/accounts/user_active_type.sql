-- A user's type, unless disabled or deleted. $1 uuid: id.
SELECT user_type FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
