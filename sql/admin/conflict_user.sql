-- The user of a conflict. $1 uuid: the conflict.
SELECT user_id FROM {schema}.message_conflicts WHERE id = $1
