-- One row if the token belongs to the device, revoked or not. $1 bytea: SHA-256 of the token; $2 text: device id.
SELECT FROM posduif.devices WHERE token_hash = $1 AND device_id = $2
