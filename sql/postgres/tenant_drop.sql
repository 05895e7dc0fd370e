-- Removes a tenant from the directory, with its credentials, devices and enrollment tokens, and sends the command at this
-- transaction's position in the log. $1 text: name; $2 text: name of the command. One row when the tenant existed, with a
-- position in the log before that of the commit.
WITH dropped AS (
    DELETE FROM posduif.tenants WHERE name = $1 RETURNING name
), sent AS (
    INSERT INTO posduif.commands (name, arguments) SELECT $2, name FROM dropped RETURNING id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action) SELECT name, 'cli', 'tenant_dropped' FROM dropped
)
SELECT pg_current_wal_insert_lsn() AS lsn FROM sent
