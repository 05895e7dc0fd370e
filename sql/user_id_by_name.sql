-- The user of this name, a deleted one where there is no other. $1 text: username.
SELECT id FROM {schema}.users WHERE username = $1 ORDER BY deleted_at IS NOT NULL, id LIMIT 1
