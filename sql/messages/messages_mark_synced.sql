-- Marks messages as received by a device of the recipient. $1: recipient, $2: message ids.
-- The rows are found by their ids only: with few statistics the index over recipients looks as good, and every statement
-- would read all messages of the recipient.
UPDATE {schema}.messages SET status = 'synced', synced_at = now()
WHERE id = ANY($2) AND (recipient_id = $1) IS TRUE AND status = 'pending_sync'
