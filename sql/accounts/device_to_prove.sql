-- What a proof of a device is checked against, revoked or not: always one row, of nulls and the time where there is no such
-- device. $1 text: tenant; $2 text: device id.
SELECT device.token_hash, device.auth_key, device.revoked_at IS NOT NULL AS is_revoked,
       floor(extract(epoch FROM clock_timestamp()))::bigint AS now
FROM (VALUES (1)) AS one (row)
LEFT JOIN posduif.devices device ON device.tenant = $1 AND device.device_id = $2
