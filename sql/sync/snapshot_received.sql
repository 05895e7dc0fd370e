-- A page of the messages that a user has received, oldest first. $1: user, $2 and $3: after the message of this time
-- (µs since 1970) and id, $4: page size.
SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision,
       created_at, updated_at, synced_at, read_at,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_at_micros
FROM {schema}.messages
WHERE recipient_id = $1 AND deleted_at IS NULL
  AND (created_at, id) > (CASE WHEN $2 = -9223372036854775808 THEN '-infinity'::timestamptz
                               ELSE 'epoch'::timestamptz + $2 * interval '1 microsecond' END, $3)
ORDER BY created_at, id
LIMIT $4
