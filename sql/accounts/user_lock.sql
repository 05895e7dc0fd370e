-- A user, unless disabled or deleted, locked, so that devices are added to it one after the other. $1 uuid: id.
SELECT username FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL FOR NO KEY UPDATE
