-- A page of a tenant's users. $1: the user of the device (all users see the same), $2 and $3: after the user of this time
-- (µs since 1970) and id, $4: page size.
SELECT id, username, user_type, created_at, updated_at,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_at_micros
FROM {schema}.users
WHERE $1::uuid IS NOT NULL AND deleted_at IS NULL
  AND (created_at, id) > (CASE WHEN $2 = -9223372036854775808 THEN '-infinity'::timestamptz
                               ELSE 'epoch'::timestamptz + $2 * interval '1 microsecond' END, $3)
ORDER BY created_at, id
LIMIT $4
