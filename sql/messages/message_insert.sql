-- Creates a message to a mobile user; one row: the types of the parties, and the message if it was created. The sender is
-- locked, so that erasing the sender waits for the message, or goes before it.
-- $1 uuid: sender; $2 uuid: recipient; $3 text: content.
WITH sender AS (
    SELECT id FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
    FOR SHARE
), recipient AS (
    SELECT id, user_type FROM {schema}.users WHERE id = $2 AND deleted_at IS NULL
), created AS (
    INSERT INTO {schema}.messages (sender_id, recipient_id, content)
    SELECT sender.id, recipient.id, $3 FROM sender, recipient WHERE recipient.user_type = 'mobile'
    RETURNING id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision,
           created_at, updated_at, synced_at, read_at
)
SELECT EXISTS (SELECT FROM sender) AS sender_is_active, (SELECT user_type FROM recipient) AS recipient_type, created.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN created ON true
