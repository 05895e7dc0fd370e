-- Second factors of logins with a password (TOTP, RFC 6238).
CREATE TABLE posduif.second_factors (
    tenant       text NOT NULL,
    user_id      uuid NOT NULL,
    -- Another one for each secret.
    id           uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Encrypted with a key that is derived from auth.jwt_secret: the name of the key (8 bytes), the nonce (12), the
    -- ciphertext with its tag.
    secret       bytea NOT NULL CHECK (octet_length(secret) BETWEEN 37 AND 256),
    begun_at     timestamptz NOT NULL DEFAULT now(),
    -- Null until a code has shown that the user has the secret; before that, no login needs a code.
    confirmed_at timestamptz,
    -- The time step of the last accepted code. No code of this step or of an earlier one is accepted again.
    last_step    bigint NOT NULL DEFAULT 0,
    -- SHA-256 of the recovery codes that are left.
    recovery     bytea[] NOT NULL DEFAULT '{}' CHECK (cardinality(recovery) <= 100),
    PRIMARY KEY (tenant, user_id),
    FOREIGN KEY (tenant, user_id) REFERENCES posduif.credentials ON DELETE CASCADE
);
