-- Locks a user who is to be erased, after what the user's requests are writing: uploads take turns under the advisory lock, all
-- other writes lock the user. Statements after this one see what those wrote. No row when there is no user. $1 uuid: user.
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))::text AS taken
)
SELECT u.id FROM turn, {schema}.users u WHERE u.id = $1 AND u.deleted_at IS NULL
FOR NO KEY UPDATE OF u
