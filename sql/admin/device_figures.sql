-- How many devices a tenant has, and those seen last. $1 bigint: most of these.
WITH seen AS (
    SELECT d.device_id, d.user_id, greatest(d.last_seen_at, s.last_sync_timestamp) AS at
    FROM {schema}.devices d
    LEFT JOIN {schema}.sync_metadata s USING (device_id)
    WHERE d.revoked_at IS NULL
), recent AS (
    SELECT device_id, user_id FROM seen WHERE at > now() - interval '2 minutes' ORDER BY at DESC LIMIT $1
)
SELECT count(*) AS enrolled, count(*) FILTER (WHERE at > now() - interval '1 day') AS seen_1d,
       count(*) FILTER (WHERE at > now() - interval '2 minutes') AS online,
       (SELECT coalesce(array_agg(device_id), '{}') FROM recent) AS devices,
       (SELECT coalesce(array_agg(user_id), '{}') FROM recent) AS users
FROM seen
