-- Marks an enrollment used. $1 uuid: id; $2 text: the device; $3 text: tenant; $4 text: actor; $5 inet or null: address.
WITH used AS (
    UPDATE {schema}.enrollments SET used_at = clock_timestamp(), device_id = $2 WHERE id = $1 RETURNING id
)
INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
SELECT $3, $4, $5, 'enrollment_completed', id, jsonb_build_object('device_id', $2) FROM used
