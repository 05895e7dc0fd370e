-- The stamps of those of these users who may act. $1 text: tenant; $2 uuid[]: ids.
SELECT u.id, c.stamp, c.kept_session
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
WHERE u.id = ANY ($2) AND u.deleted_at IS NULL AND u.disabled_at IS NULL
