-- The number of unread messages to a user, and the snapshot of the statement. $1 uuid: user.
SELECT count(*) AS unread_count, pg_current_snapshot()::text AS snapshot
FROM {schema}.messages
WHERE recipient_id = $1 AND read_at IS NULL AND deleted_at IS NULL
