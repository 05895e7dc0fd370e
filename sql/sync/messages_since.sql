-- Received messages that changed since a time, oldest change first. $1: recipient, $2: time, $3: most rows.
SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision,
       created_at, updated_at, synced_at, read_at
FROM {schema}.messages
WHERE recipient_id = $1 AND updated_at >= $2 AND deleted_at IS NULL
ORDER BY updated_at, id
LIMIT $3
