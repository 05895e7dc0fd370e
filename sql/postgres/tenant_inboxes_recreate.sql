-- Requests the recreation of the inbox of each user of a tenant, deleted users included, and returns their number.
-- $1 text: tenant; $2 text: name of the commands.
WITH sent AS (
    INSERT INTO posduif.commands (name, arguments) SELECT $2, $1 || ' inbox:' || id FROM {schema}.users RETURNING id
)
SELECT count(*) AS inboxes FROM sent
