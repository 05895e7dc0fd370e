-- A user with the role, the security stamp and the second factor, unless disabled or deleted. $1 text: tenant; $2 uuid: id.
SELECT u.id, u.username, u.user_type, u.role, u.email, c.unverified_email, c.email_stamp,
    c.stamp, c.kept_session, c.stamped_at, c.password_hash,
    i.issuer, i.subject, i.claims_at,
    f.id AS factor_id, f.secret AS factor_secret, cardinality(f.recovery) AS recovery_codes
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
LEFT JOIN posduif.identities i ON i.tenant = $1 AND i.user_id = u.id
LEFT JOIN posduif.second_factors f ON f.tenant = $1 AND f.user_id = u.id AND f.confirmed_at IS NOT NULL
WHERE u.id = $2 AND u.deleted_at IS NULL AND u.disabled_at IS NULL
