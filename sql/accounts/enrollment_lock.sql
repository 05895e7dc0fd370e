-- An enrollment with its users, locked; `now` is the time after the wait for the locks, and `is_allowed` whether the creator
-- may still enroll a device for that user. Users are locked before enrollments, the order in which disabling or removing a
-- user locks them: the reverse order would deadlock. $1 uuid: id.
WITH people AS MATERIALIZED (
    SELECT id, role, disabled_at IS NULL AND deleted_at IS NULL AS is_active FROM {schema}.users
    WHERE id IN (SELECT unnest(ARRAY[created_by, user_id]) FROM {schema}.enrollments WHERE id = $1)
    ORDER BY id
    FOR NO KEY UPDATE
), locked AS MATERIALIZED (
    SELECT created_by, user_id, device_id, expires_at, used_at FROM {schema}.enrollments
    WHERE id = $1 AND EXISTS (SELECT FROM people)
    FOR UPDATE
)
SELECT locked.user_id, device_id, used_at, expires_at <= clock_timestamp() AS is_expired, clock_timestamp() AS now,
       creator.is_active AND (creator.role = 'admin' OR coalesce(locked.user_id = creator.id, true)) AS is_allowed
FROM locked
JOIN people creator ON creator.id = created_by
