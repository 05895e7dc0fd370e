-- A device, unless revoked. $1 text: tenant; $2 text: device id.
SELECT user_id FROM posduif.devices WHERE tenant = $1 AND device_id = $2 AND revoked_at IS NULL
