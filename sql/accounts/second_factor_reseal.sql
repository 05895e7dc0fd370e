-- Replaces the encryption of a secret. $1 text: tenant; $2 uuid: user; $3 bytea: the former; $4 bytea: the new one.
UPDATE posduif.second_factors SET secret = $4 WHERE tenant = $1 AND user_id = $2 AND secret = $3
