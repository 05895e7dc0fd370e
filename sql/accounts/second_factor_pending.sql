-- The secret of a user that waits for its first code. $1 text: tenant; $2 uuid: user; $3 bigint: seconds that it may wait.
SELECT id, secret FROM posduif.second_factors
WHERE tenant = $1 AND user_id = $2 AND confirmed_at IS NULL AND begun_at > now() - $3 * interval '1 second'
