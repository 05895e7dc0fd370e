-- How many messages to a user are unread, and which transactions this count sees. $1 uuid: user.
SELECT count(*) AS unread_count, pg_current_snapshot()::text AS snapshot
FROM {schema}.messages
WHERE recipient_id = $1 AND read_at IS NULL AND deleted_at IS NULL
