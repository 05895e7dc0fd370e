-- Sets REPLICA IDENTITY FULL on every table that a statement created in, or moved into, a tenant's schema.
-- It runs as its owner, a superuser, because the creator of the table may lack access to posduif.tenants. Its own ALTER TABLE
-- fires the trigger again; the identity is FULL by then, which ends the recursion. For the same reason the identity cannot be
-- changed while the trigger is enabled.
-- A table with virtual generated columns (Postgres 18) gets the identity of its primary key: such columns are never
-- published, and an identity that contains them makes updates fail.
CREATE OR REPLACE FUNCTION posduif.full_identity() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made record;
BEGIN
    -- `migrate down` of the control schema drops this table and leaves the trigger.
    IF to_regclass('posduif.tenants') IS NULL THEN
        RETURN;
    END IF;
    FOR made IN
        SELECT DISTINCT command.objid::regclass AS name, wanted.identity
        FROM pg_event_trigger_ddl_commands() command
        JOIN pg_class class ON class.oid = command.objid AND command.classid = 'pg_class'::regclass
        JOIN pg_namespace schema ON schema.oid = class.relnamespace
        CROSS JOIN LATERAL (
            SELECT CASE WHEN EXISTS (
                SELECT FROM pg_attribute attribute
                WHERE attribute.attrelid = class.oid AND attribute.attgenerated = 'v' AND NOT attribute.attisdropped
            ) THEN 'DEFAULT' ELSE 'FULL' END AS identity
        ) wanted
        WHERE class.relkind IN ('r', 'p')
          AND (wanted.identity = 'FULL') <> (class.relreplident = 'f')
          AND schema.nspname IN (SELECT tenant.schema_name FROM posduif.tenants tenant)
    LOOP
        -- regclass prints itself qualified and quoted.
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY %s', made.name, made.identity);
    END LOOP;
END
$$
