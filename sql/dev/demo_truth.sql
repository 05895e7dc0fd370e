-- The rows that a user may see, by SQL alone, as the text of one JSON object. $1 uuid: user.
SELECT json_build_object(
    'lists', (
        SELECT coalesce(json_agg(json_build_object('id', list.id, 'version', list.version, 'name', list.name)
                                 ORDER BY list.created_at, list.id), '[]')
        FROM {schema}.lists list
        WHERE list.deleted_at IS NULL
          AND list.id IN (SELECT member.list_id FROM {schema}.list_members member WHERE member.user_id = $1)
    ),
    'tasks', (
        SELECT coalesce(json_agg(json_build_object('id', task.id, 'version', task.version, 'title', task.title,
                                                   'done', task.done, 'note', task.note, 'list_id', task.list_id)
                                 ORDER BY task.created_at, task.id), '[]')
        FROM {schema}.tasks task
        WHERE task.deleted_at IS NULL
          AND task.list_id IN (SELECT member.list_id FROM {schema}.list_members member WHERE member.user_id = $1)
    ),
    'messages', (
        SELECT coalesce(json_agg(json_build_object('id', message.id, 'version', message.version,
                                                   'content', message.content, 'status', message.status)
                                 ORDER BY message.created_at, message.id), '[]')
        FROM {schema}.messages message
        WHERE message.deleted_at IS NULL AND $1 IN (message.sender_id, message.recipient_id)
    ),
    'now', floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
)::text
