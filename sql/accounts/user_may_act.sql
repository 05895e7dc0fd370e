-- Whether a user is neither disabled nor deleted; no row without one. $1 uuid: id.
SELECT deleted_at IS NULL AND disabled_at IS NULL AS may_act FROM {schema}.users WHERE id = $1
