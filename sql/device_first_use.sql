-- Notes that a token has been used, which ends its enrollment's retries. $1 bytea: SHA-256 of the token.
UPDATE posduif.devices SET first_used_at = now() WHERE token_hash = $1 AND first_used_at IS NULL
