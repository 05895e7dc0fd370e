-- The number of messages that users have not acknowledged. $1 uuid[]: recipients. Users without one are omitted.
SELECT recipient_id, count(*) AS count FROM {schema}.messages
WHERE recipient_id = ANY ($1) AND status = 'pending_sync' AND deleted_at IS NULL
GROUP BY recipient_id
