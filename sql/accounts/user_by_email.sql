-- The active user with a password who has this email. $1 text: email; $2 text: tenant.
SELECT u.id, u.username, u.email, c.stamp
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $2 AND c.user_id = u.id
WHERE lower(u.email) = lower($1) AND u.deleted_at IS NULL AND u.disabled_at IS NULL AND c.password_hash IS NOT NULL
