-- Notes that a recipient's device has these messages. $1: recipient, $2: message ids.
-- The rows are found by their ids only: with few statistics the index over recipients looks as good, and every statement
-- would go through all that the recipient ever got.
UPDATE {schema}.messages SET status = 'synced', synced_at = now()
WHERE id = ANY($2) AND (recipient_id = $1) IS TRUE AND status = 'pending_sync'
