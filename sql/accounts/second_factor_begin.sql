-- Stores a secret that no code has confirmed, in place of an earlier one of this kind. No row when the user has a factor, or
-- no password, or another stamp by now. $1 text: tenant; $2 uuid: user; $3 uuid: stamp; $4 bytea: encrypted secret.
INSERT INTO posduif.second_factors AS f (tenant, user_id, secret)
SELECT c.tenant, c.user_id, $4 FROM posduif.credentials c
WHERE c.tenant = $1 AND c.user_id = $2 AND c.stamp = $3 AND c.password_hash IS NOT NULL
ON CONFLICT (tenant, user_id) DO UPDATE
SET id = gen_random_uuid(), secret = excluded.secret, begun_at = now(), last_step = 0, recovery = '{}'
WHERE f.confirmed_at IS NULL
RETURNING begun_at
