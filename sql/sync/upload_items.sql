-- Applies an upload; a row for each item, or a single row of the item 0 if its sequence is wrong or it
-- is not allowed.
-- $1 uuid: user; $2 text: device id; $3 text: tenant; $4 text: the tenant's schema; $5 text: conflict strategy; $6 jsonb: items;
-- $7 bigint or null: the first sequence number; $8 bigint or null: the number up to which the device has stored its results;
-- $9 bytea[] or null: the digest of each item; $10 jsonb: the memberships of each kind of group.
SELECT item, status, code, message, version, revision, winner, conflict_id, server, expected, repeated
FROM {schema}.upload_items($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
