-- Applies a device's batch; one row for each item. The arrays have one element for each item.
-- $1 uuid: user; $2 text: device id; $3 text: conflict strategy; $4 uuid[]: ids; $5 text[]: operations;
-- $6 uuid[]: recipients; $7 text[]: contents; $8 bigint[]: base versions; $9 timestamptz[]: times of writing.
SELECT item, status, code, version, server FROM {schema}.upload_messages($1, $2, $3, $4, $5, $6, $7, $8, $9)
