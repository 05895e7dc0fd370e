-- How many messages to a user are unread. $1 uuid: user.
SELECT count(*) AS unread_count
FROM {schema}.messages
WHERE recipient_id = $1 AND read_at IS NULL AND deleted_at IS NULL
