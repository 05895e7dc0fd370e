-- Deletes the messages that a user has sent, and their content, also that of messages which were deleted before.
-- $1 uuid: user.
UPDATE {schema}.messages SET content = '(deleted)', deleted_at = coalesce(deleted_at, now()), device_id = NULL
WHERE sender_id = $1
