-- Replaces the recovery codes of a confirmed factor. No row without one, or when the stamp is another by now.
-- $1 text: tenant; $2 uuid: user; $3 uuid: stamp; $4 bytea[]: SHA-256 of the codes; $5 text: actor; $6 inet or null: address.
WITH current AS (
    SELECT user_id FROM posduif.credentials WHERE tenant = $1 AND user_id = $2 AND stamp = $3
    FOR SHARE
), renewed AS (
    UPDATE posduif.second_factors f SET recovery = $4
    FROM current
    WHERE f.tenant = $1 AND f.user_id = current.user_id AND f.confirmed_at IS NOT NULL
    RETURNING f.user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $1, $5, $6, 'recovery_codes_renewed', user_id FROM renewed
)
SELECT user_id FROM renewed
