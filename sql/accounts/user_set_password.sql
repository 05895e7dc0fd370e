-- Sets a user's password. $1 text: tenant; $2 uuid: user; $3 text: hash.
INSERT INTO posduif.credentials (tenant, user_id, password_hash) VALUES ($1, $2, $3)
ON CONFLICT (tenant, user_id) DO UPDATE SET password_hash = excluded.password_hash, updated_at = now()
