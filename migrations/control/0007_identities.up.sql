-- Users of other providers of identities. They have a security stamp and no password.
ALTER TABLE posduif.credentials
    ALTER COLUMN password_hash DROP NOT NULL,
    -- When the stamp was changed; null if never. Tokens of other providers that were issued before are refused.
    ADD COLUMN stamped_at timestamptz;

-- Which provider identifies a user. Any other provider's token for the same user is refused.
CREATE TABLE posduif.identities (
    tenant     text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    user_id    uuid NOT NULL,
    issuer     text NOT NULL,
    -- With the prefix of the provider.
    subject    text NOT NULL,
    -- `iat` of the newest token whose role was applied, in seconds since 1970.
    claims_at  bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, user_id)
);
