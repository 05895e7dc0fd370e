-- Marks an enrollment used. $1 uuid: id; $2 text: the device.
UPDATE {schema}.enrollments SET used_at = clock_timestamp(), device_id = $2 WHERE id = $1
