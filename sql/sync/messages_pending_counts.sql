-- How many messages wait for the first acknowledgements of users. $1 uuid[]: recipients. Who has none is left out.
SELECT recipient_id, count(*) AS count FROM {schema}.messages
WHERE recipient_id = ANY ($1) AND status = 'pending_sync' AND deleted_at IS NULL
GROUP BY recipient_id
