-- The enrollment of a token. $1 bytea: SHA-256 of the token.
SELECT tenant, enrollment_id FROM posduif.enrollment_tokens WHERE token_hash = $1
