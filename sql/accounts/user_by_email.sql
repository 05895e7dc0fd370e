-- The active user with a password who has this email. $1 text: email; $2 text: tenant; $3 boolean: only if it is verified.
SELECT u.id, u.username, u.email, c.stamp, c.email_stamp
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $2 AND c.user_id = u.id
WHERE lower(u.email) = lower($1) AND u.deleted_at IS NULL AND u.disabled_at IS NULL AND c.password_hash IS NOT NULL
  AND (NOT $3 OR u.email IS DISTINCT FROM c.unverified_email)
