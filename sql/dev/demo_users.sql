-- The users with these usernames. $1 text[]: usernames.
SELECT username, id FROM {schema}.users WHERE username = ANY ($1) AND deleted_at IS NULL
