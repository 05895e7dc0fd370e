-- A user by name or id, disabled ones too; names take precedence. $1 text: username; $2 uuid or null: id.
SELECT id, username, user_type, disabled_at
FROM {schema}.users
WHERE deleted_at IS NULL AND (lower(username) = lower($1) OR id = $2)
ORDER BY (lower(username) = lower($1)) DESC
LIMIT 1
