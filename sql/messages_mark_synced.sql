-- Notes that a recipient's device has these messages. $1: recipient, $2: message ids.
UPDATE {schema}.messages SET status = 'synced', synced_at = now()
WHERE recipient_id = $1 AND id = ANY($2) AND status = 'pending_sync'
