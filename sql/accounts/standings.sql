-- The stamps, types and identities of those of these users who may act. $1 text: tenant; $2 uuid[]: ids.
SELECT u.id, u.user_type, c.stamp, c.kept_session, c.stamped_at, i.issuer, i.subject, i.claims_at
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
LEFT JOIN posduif.identities i ON i.tenant = $1 AND i.user_id = u.id
WHERE u.id = ANY ($2) AND u.deleted_at IS NULL AND u.disabled_at IS NULL
