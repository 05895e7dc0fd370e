-- Makes a verified address the user's; a username that is an address changes with it. Returns the former
-- address if that was verified. No row when the token was used, or the user may not act. $1 text: tenant; $2 uuid: user;
-- $3 uuid: the stamp of the address in the token; $4 text: address; $5 text: actor; $6 inet or null: client's address.
WITH former AS (
    SELECT u.id, CASE WHEN u.email IS DISTINCT FROM c.unverified_email THEN u.email END AS email
    FROM {schema}.users u
    JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
    WHERE u.id = $2 AND u.deleted_at IS NULL AND u.disabled_at IS NULL
    FOR NO KEY UPDATE OF u
), stamped AS (
    UPDATE posduif.credentials c SET email_stamp = gen_random_uuid(), unverified_email = NULL
    FROM former
    WHERE c.tenant = $1 AND c.user_id = former.id AND c.email_stamp = $3
    RETURNING c.user_id
), changed AS (
    UPDATE {schema}.users u
    SET email = $4, username = CASE WHEN strpos(u.username, '@') > 0 THEN $4 ELSE u.username END, updated_at = now()
    FROM stamped
    WHERE u.id = stamped.user_id
    RETURNING u.id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $1, $5, $6, 'email_verified', id FROM changed
)
SELECT former.email AS former FROM changed, former
