-- Removes the second factor of a user, and changes the stamp. No row when there is none, or the stamp is another by now.
-- $1 text: tenant; $2 uuid: user; $3 uuid or null: the stamp to replace; $4 uuid or null: the session that goes on;
-- $5 text: actor; $6 inet or null: address.
WITH stamped AS (
    UPDATE posduif.credentials c
    SET stamp = gen_random_uuid(), stamped_at = clock_timestamp(), kept_session = $4
    WHERE c.tenant = $1 AND c.user_id = $2 AND ($3 IS NULL OR c.stamp = $3) AND EXISTS (
        SELECT FROM posduif.second_factors f
        WHERE f.tenant = $1 AND f.user_id = $2 AND f.confirmed_at IS NOT NULL
    )
    RETURNING c.user_id
), removed AS (
    DELETE FROM posduif.second_factors f USING stamped WHERE f.tenant = $1 AND f.user_id = stamped.user_id
    RETURNING f.user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $1, $5, $6, 'second_factor_removed', user_id FROM removed
)
SELECT user_id FROM removed
