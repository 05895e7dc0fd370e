-- Conflicts of all users, open ones first, then newest first. $1 bigint: most rows.
SELECT conflict.id, conflict.message_id, conflict.table_name, conflict.row_id, conflict.user_id, users.username, conflict.device_id,
       conflict.base_version, conflict.client_version, conflict.server_version, conflict.strategy, conflict.resolution,
       conflict.created_at, conflict.resolved_at
FROM {schema}.message_conflicts conflict
LEFT JOIN {schema}.users ON users.id = conflict.user_id
ORDER BY conflict.resolved_at IS NOT NULL, conflict.created_at DESC, conflict.id DESC
LIMIT $1
