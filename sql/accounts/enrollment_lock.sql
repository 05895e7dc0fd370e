-- An enrollment, locked; `now` is the time after the wait for the lock. $1 uuid: id.
WITH locked AS MATERIALIZED (
    SELECT user_id, device_id, expires_at, used_at FROM {schema}.enrollments WHERE id = $1 FOR UPDATE
)
SELECT user_id, device_id, used_at, expires_at <= clock_timestamp() AS is_expired, clock_timestamp() AS now
FROM locked
