-- Records the first use of tokens, which ends the repetition of their enrollments. $1 bytea[]: SHA-256 of each token.
UPDATE posduif.devices SET first_used_at = now() WHERE token_hash = ANY ($1) AND first_used_at IS NULL
