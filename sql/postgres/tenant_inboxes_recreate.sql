-- Requests the recreation of the inbox of each user of a tenant, deleted users included, and returns their number.
-- $1 text: tenant; $2 text: prefix of the messages.
SELECT count(pg_logical_emit_message(true, $2, $1 || ' inbox:' || id)) AS inboxes FROM {schema}.users
