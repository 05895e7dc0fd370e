-- The directory row of a tenant, and the numbers of its rows. $1 text: name.
SELECT tenant.state, tenant.generation, tenant.registration_open, tenant.created_at,
       users.web, users.mobile, users.disabled, devices.enrolled, devices.revoked,
       (SELECT count(*) FROM {schema}.message_conflicts WHERE resolved_at IS NULL) AS open_conflicts
FROM posduif.tenants tenant
CROSS JOIN (
    SELECT count(*) FILTER (WHERE user_type = 'web') AS web, count(*) FILTER (WHERE user_type = 'mobile') AS mobile,
           count(*) FILTER (WHERE disabled_at IS NOT NULL) AS disabled
    FROM {schema}.users WHERE deleted_at IS NULL
) users
CROSS JOIN (
    SELECT count(*) FILTER (WHERE revoked_at IS NULL) AS enrolled, count(*) FILTER (WHERE revoked_at IS NOT NULL) AS revoked
    FROM {schema}.devices
) devices
WHERE tenant.name = $1
