-- A page of the ids of a tenant's users whose inbox is likely to be read: they have a device, or were seen lately. The inbox of
-- another one is created when it is first read. $1 uuid: after this id, $2 bigint: page size, $3 int: days.
SELECT u.id FROM {schema}.users u
WHERE u.id > $1 AND u.deleted_at IS NULL
AND (
    u.last_seen > now() - make_interval(days => $3)
    OR EXISTS (SELECT FROM {schema}.devices d WHERE d.user_id = u.id AND d.revoked_at IS NULL)
)
ORDER BY u.id LIMIT $2
