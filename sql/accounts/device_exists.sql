-- Whether there is such a device. $1 text: device id.
SELECT 1 FROM {schema}.devices WHERE device_id = $1
