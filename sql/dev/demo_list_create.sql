-- Creates the list of the demo with its members and tasks, unless it was created before.
-- $1 uuid: list; $2 text: its name; $3 text[]: usernames of its members; $4 text[]: titles of its tasks.
WITH created AS (
    INSERT INTO {schema}.lists (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id
), members AS (
    INSERT INTO {schema}.list_members (list_id, user_id)
    SELECT created.id, users.id
    FROM created, {schema}.users
    WHERE users.username = ANY ($3) AND users.deleted_at IS NULL
)
INSERT INTO {schema}.tasks (list_id, title, created_at)
SELECT created.id, wanted.title, now() + wanted.place * interval '1 millisecond'
FROM created, unnest($4::text[]) WITH ORDINALITY AS wanted (title, place)
