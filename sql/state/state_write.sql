-- Writes states of a user under conditions, all or none; one row for each item, see write_states() in the tenant's schema.
-- $1 uuid: user; $2 text or null: device id; $3 text[]: keys; $4 bytea[]: states, null to delete; $5 bytea[]: nonces;
-- $6 text[]: versions on which they are based, each an array as text; $7 bigint: most keys of the user.
SELECT outcome, version, is_deleted, device_id, created_at, updated_at
FROM {schema}.write_states($1, $2, $3, $4, $5, $6, $7)
