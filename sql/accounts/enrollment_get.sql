-- An enrollment and its creator, unless disabled or deleted. $1 uuid: id.
SELECT creator.username AS created_by, enrollment.expires_at, enrollment.used_at IS NOT NULL AS is_used,
       enrollment.expires_at <= now() AS is_expired
FROM {schema}.enrollments enrollment
JOIN {schema}.users creator ON creator.id = enrollment.created_by
WHERE enrollment.id = $1 AND creator.deleted_at IS NULL AND creator.disabled_at IS NULL
