-- Updates when users and their devices were last seen, where the time is later than the stored one, unless the user was
-- deleted. Arrays of the same
-- length: $1 uuid[]: users; $2 text[]: their devices, null for none; $3 timestamptz[]: times.
WITH news AS (
    SELECT * FROM unnest($1, $2, $3) AS n (user_id, device_id, seen)
), locked AS (
    -- Users before their devices, the order in which removing a user locks them: the reverse order would deadlock.
    SELECT u.id FROM {schema}.users AS u WHERE u.id = ANY ($1) AND u.deleted_at IS NULL ORDER BY u.id FOR NO KEY UPDATE
), devices_seen AS (
    UPDATE {schema}.devices AS d SET last_seen_at = n.seen FROM news AS n, locked AS l
    WHERE d.device_id = n.device_id AND d.user_id = n.user_id AND l.id = n.user_id
      AND coalesce(d.last_seen_at < n.seen, true)
)
UPDATE {schema}.users AS u SET last_seen = s.at
FROM (SELECT user_id, max(seen) AS at FROM news GROUP BY user_id) AS s, locked AS l
WHERE u.id = s.user_id AND l.id = u.id AND coalesce(u.last_seen < s.at, true)
