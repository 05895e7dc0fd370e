-- A page of open enrollments, newest first: after an offset, before an enrollment, or after it. Each row contains whether
-- that enrollment is one of the list and, without one, the length of the list; a page without rows is one row with these
-- alone. $1 uuid or null: only by this creator; $2 bigint: most rows; $3 bigint: offset; $4 uuid or null: the enrollment;
-- $5 boolean: after it, else before it.
WITH found AS NOT MATERIALIZED (
    SELECT e.id, creator.username AS created_by, e.user_id, owner.username, e.created_at, e.expires_at
    FROM {schema}.enrollments e
    JOIN {schema}.users creator ON creator.id = e.created_by
    LEFT JOIN {schema}.users owner ON owner.id = e.user_id
    WHERE e.used_at IS NULL AND e.expires_at > now() AND ($1 IS NULL OR e.created_by = $1)
), place AS (
    SELECT created_at, id FROM found WHERE id = $4
), before AS (
    SELECT * FROM found
    WHERE NOT $5 AND ($4 IS NULL OR (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place)))
    ORDER BY created_at DESC, id DESC
    LIMIT $2 OFFSET $3
), after AS (
    SELECT * FROM found
    WHERE $5 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
    ORDER BY created_at, id
    LIMIT $2
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT $4 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $4 IS NULL THEN (SELECT count(*) FROM found) END AS total, page.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC
