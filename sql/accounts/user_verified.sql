-- A user whose password was checked against this hash, unless it was changed or the user disabled or deleted since, with the
-- second factor if there is one. $1 text: tenant; $2 uuid: user; $3 text: the verified hash.
SELECT u.id, u.username, u.user_type, u.role, c.stamp, f.id AS factor_id, f.secret AS factor_secret
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
LEFT JOIN posduif.second_factors f ON f.tenant = $1 AND f.user_id = u.id AND f.confirmed_at IS NOT NULL
WHERE u.id = $2 AND c.password_hash = $3 AND u.deleted_at IS NULL AND u.disabled_at IS NULL
