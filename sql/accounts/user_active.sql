-- A user with the role and the security stamp, unless disabled or deleted. $1 text: tenant; $2 uuid: id.
SELECT u.id, u.username, u.user_type, u.role, c.stamp, c.kept_session, c.stamped_at, c.password_hash,
    i.issuer, i.subject, i.claims_at
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
LEFT JOIN posduif.identities i ON i.tenant = $1 AND i.user_id = u.id
WHERE u.id = $2 AND u.deleted_at IS NULL AND u.disabled_at IS NULL
