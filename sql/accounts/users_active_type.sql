-- The types of those of these users that are neither disabled nor deleted. $1 uuid[]: ids.
SELECT id, user_type FROM {schema}.users WHERE id = ANY ($1) AND deleted_at IS NULL AND disabled_at IS NULL
