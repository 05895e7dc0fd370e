-- Uses a recovery code up: no row when it is none, or was used. $1 text: tenant; $2 uuid: user; $3 uuid: id of the secret;
-- $4 bytea: SHA-256 of the code; $5 text: actor; $6 inet or null: address.
WITH used AS (
    UPDATE posduif.second_factors SET recovery = array_remove(recovery, $4)
    WHERE tenant = $1 AND user_id = $2 AND id = $3 AND confirmed_at IS NOT NULL AND $4 = ANY (recovery)
    RETURNING user_id, cardinality(recovery) AS remaining
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $1, $5, $6, 'recovery_code_used', user_id, jsonb_build_object('remaining', remaining) FROM used
)
SELECT remaining FROM used
