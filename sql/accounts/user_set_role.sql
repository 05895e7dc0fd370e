-- Sets a user's role; no row when nothing changes. $1 uuid: user; $2 text: role; $3 text: tenant; $4 text: actor;
-- $5 inet or null: address.
WITH changed AS (
    UPDATE {schema}.users SET role = $2, updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL AND role <> $2
    RETURNING id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action, subject, detail)
    SELECT $3, $4, $5, 'role_changed', id, jsonb_build_object('role', $2) FROM changed
)
SELECT id FROM changed
