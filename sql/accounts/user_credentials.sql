-- One row: a name as it is compared, and the user of this username or email, unless disabled or deleted; usernames take
-- precedence. $1 text: username or email; $2 text: tenant.
SELECT lower($1) AS name, found.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN LATERAL (
    SELECT u.id, c.password_hash
    FROM {schema}.users u
    LEFT JOIN posduif.credentials c ON c.tenant = $2 AND c.user_id = u.id
    WHERE u.deleted_at IS NULL AND u.disabled_at IS NULL AND (lower(u.username) = lower($1) OR lower(u.email) = lower($1))
    ORDER BY (lower(u.username) = lower($1)) DESC
    LIMIT 1
) found ON true
