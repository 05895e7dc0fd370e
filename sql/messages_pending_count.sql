-- How many messages wait for a user's first acknowledgement. $1: recipient.
SELECT count(*) AS count FROM {schema}.messages
WHERE recipient_id = $1 AND status = 'pending_sync' AND deleted_at IS NULL
