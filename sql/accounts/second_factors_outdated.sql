-- A page of the secrets that another key than this one encrypts. $1 bytea: name of the key; $2 text, $3 uuid: tenant and user
-- of the last row of the page before; $4 bigint: rows.
SELECT tenant, user_id, secret FROM posduif.second_factors
WHERE substring(secret FROM 1 FOR 8) <> $1 AND (tenant, user_id) > ($2, $3)
ORDER BY tenant, user_id
LIMIT $4
