-- One row if the device exists, revoked or not. $1 text: device id.
SELECT 1 FROM {schema}.devices WHERE device_id = $1
