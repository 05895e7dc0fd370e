-- Asks for the inbox of each user of a tenant to be made anew, deleted users included, and tells how many there are.
-- $1 text: tenant; $2 text: prefix of the messages.
SELECT count(pg_logical_emit_message(true, $2, $1 || ' inbox:' || id)) AS inboxes FROM {schema}.users
