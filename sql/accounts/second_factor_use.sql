-- Uses a code up: no row when a code of this step or a later one was accepted before. $1 text: tenant; $2 uuid: user;
-- $3 uuid: id of the secret; $4 bigint: step of the code.
UPDATE posduif.second_factors SET last_step = $4
WHERE tenant = $1 AND user_id = $2 AND id = $3 AND confirmed_at IS NOT NULL AND last_step < $4
RETURNING user_id
