-- Devices of a tenant that are not revoked. $1 text: name.
SELECT count(*) AS count FROM posduif.devices WHERE tenant = $1 AND revoked_at IS NULL
