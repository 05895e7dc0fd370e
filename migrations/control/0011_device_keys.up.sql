-- Keys by which devices prove themselves when they have lost their token.
ALTER TABLE posduif.devices
    -- The public key: ECDSA over P-256, as SubjectPublicKeyInfo in DER. It is replaced, or removed, with the next enrollment.
    ADD COLUMN auth_key bytea CHECK (octet_length(auth_key) = 91);
