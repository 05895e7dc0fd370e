-- Makes a secret the second factor of its user, and changes the stamp. No row when the stamp or the secret is another by
-- now. The stamp is compared by the update that locks the credentials, before the factor is touched.
-- $1 text: tenant; $2 uuid: user; $3 uuid: id of the secret; $4 uuid: the stamp to replace; $5 bigint: step of the code;
-- $6 bytea[]: SHA-256 of the recovery codes; $7 uuid: the session that goes on; $8 text: actor; $9 inet or null: address.
WITH stamped AS (
    UPDATE posduif.credentials c
    SET stamp = gen_random_uuid(), stamped_at = clock_timestamp(), kept_session = $7
    WHERE c.tenant = $1 AND c.user_id = $2 AND c.stamp = $4 AND EXISTS (
        SELECT FROM posduif.second_factors f
        WHERE f.tenant = $1 AND f.user_id = $2 AND f.id = $3 AND f.confirmed_at IS NULL
    )
    RETURNING c.user_id
), confirmed AS (
    UPDATE posduif.second_factors f SET confirmed_at = now(), last_step = $5, recovery = $6
    FROM stamped
    WHERE f.tenant = $1 AND f.user_id = stamped.user_id AND f.id = $3 AND f.confirmed_at IS NULL
    RETURNING f.user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $1, $8, $9, 'second_factor_added', user_id FROM confirmed
)
SELECT user_id FROM confirmed
