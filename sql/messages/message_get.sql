-- One message, and the snapshot of the statement. $1 uuid: id.
SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision,
       created_at, updated_at, synced_at, read_at,
       pg_current_snapshot()::text AS snapshot
FROM {schema}.messages
WHERE id = $1 AND deleted_at IS NULL
