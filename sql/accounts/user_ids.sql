-- A page of a tenant's user ids, deleted users included: their inboxes may still be read. $1: after this id, $2: page size.
SELECT id FROM {schema}.users WHERE id > $1 ORDER BY id LIMIT $2
