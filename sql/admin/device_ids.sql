-- A page of a tenant's devices that are not revoked. $1 text: after this id; $2 bigint: page size.
SELECT device_id FROM {schema}.devices WHERE revoked_at IS NULL AND device_id > $1 ORDER BY device_id LIMIT $2
