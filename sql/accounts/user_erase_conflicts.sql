-- Deletes the conflicts of a user's changes, and those about messages that the user has sent. $1 uuid: user.
DELETE FROM {schema}.message_conflicts c
WHERE c.user_id = $1 OR c.message_id IN (SELECT id FROM {schema}.messages WHERE sender_id = $1)
