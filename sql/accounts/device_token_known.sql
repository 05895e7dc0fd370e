-- A row if a token is a device's own, revoked or not. $1 bytea: SHA-256 of the token; $2 text: device id.
SELECT FROM posduif.devices WHERE token_hash = $1 AND device_id = $2
