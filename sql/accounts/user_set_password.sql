-- Sets a user's password and changes the stamps. No row when the stamp is another by now, or the user is deleted: a deletion
-- that runs decides first. $1 text: tenant; $2 uuid: user; $3 text: hash; $4 uuid or null: the session that goes on;
-- $5 uuid or null: the stamp to replace; $6 text: actor; $7 inet or null: address.
WITH present AS (
    SELECT id FROM {schema}.users WHERE id = $2 AND deleted_at IS NULL
    FOR SHARE
), changed AS (
    INSERT INTO posduif.credentials AS c (tenant, user_id, password_hash) SELECT $1, id, $3 FROM present
    ON CONFLICT (tenant, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, updated_at = now(), stamp = gen_random_uuid(),
        email_stamp = gen_random_uuid(), stamped_at = clock_timestamp(), kept_session = $4
    WHERE $5 IS NULL OR c.stamp = $5
    RETURNING user_id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $1, $6, $7, 'password_changed', user_id FROM changed
)
SELECT user_id FROM changed
