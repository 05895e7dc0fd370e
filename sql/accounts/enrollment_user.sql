-- The user of an enrollment, if active. $1 uuid: id.
SELECT username FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL FOR KEY SHARE
