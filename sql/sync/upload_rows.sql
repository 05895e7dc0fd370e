-- Applies a device's rows of own tables; one row for each item. $1 uuid: user; $2 text: the tenant's schema; $3 jsonb: items.
SELECT item, status, code, message, version FROM {schema}.upload_rows($1, $2, $3)
