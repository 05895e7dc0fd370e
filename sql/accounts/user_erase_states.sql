-- Deletes the encrypted states of a user. $1 uuid: user.
DELETE FROM {schema}.encrypted_states WHERE user_id = $1
