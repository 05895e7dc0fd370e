-- Deletes a user, who is locked, with names, credentials, identity and devices. $1 uuid: user;
-- $2 text: tenant; $3 text: actor; $4 inet or null: address; $5, $6 text: name and arguments of the command that removes
-- the inbox.
WITH erased AS (
    UPDATE {schema}.users
    SET username = 'deleted-' || id, email = NULL, last_seen = NULL, deleted_at = now(), updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL
    RETURNING id
), enrollments AS (
    DELETE FROM {schema}.enrollments e USING erased WHERE e.created_by = erased.id OR e.user_id = erased.id
), devices AS (
    UPDATE {schema}.devices d
    SET name = NULL, public_key = NULL, device_info = '{}', revoked_at = coalesce(d.revoked_at, now())
    FROM erased WHERE d.user_id = erased.id
    RETURNING d.device_id
), directory AS (
    UPDATE posduif.devices d SET revoked_at = coalesce(d.revoked_at, now()), auth_key = NULL
    FROM erased WHERE d.tenant = $2 AND d.user_id = erased.id
), uploads AS (
    DELETE FROM posduif.upload_devices u USING devices WHERE u.tenant = $2 AND u.device_id = devices.device_id
), marks AS (
    DELETE FROM {schema}.message_reads r USING erased WHERE r.user_id = erased.id
), credentials AS (
    DELETE FROM posduif.credentials c USING erased WHERE c.tenant = $2 AND c.user_id = erased.id
), identities AS (
    DELETE FROM posduif.identities i USING erased WHERE i.tenant = $2 AND i.user_id = erased.id
), command AS (
    INSERT INTO posduif.commands (name, arguments) SELECT $5, $6 FROM erased
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject)
    SELECT $2, $3, $4, 'user_erased', id FROM erased
)
SELECT id FROM erased
