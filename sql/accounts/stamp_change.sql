-- Changes the stamp of a user, which all sessions but one lose by it. $1 text: tenant; $2 uuid: user;
-- $3 uuid or null: the session that goes on.
UPDATE posduif.credentials SET stamp = gen_random_uuid(), stamped_at = clock_timestamp(), kept_session = $3
WHERE tenant = $1 AND user_id = $2
