-- Creates the role of the demo's SQL box, and gives it its password and its rights, which are all that it has. {password}:
-- hexadecimal digits, different at each start. A role may change its own password and settings, so both are set again.
DO $$
DECLARE
    public_function regprocedure;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'posduif_demo') THEN
        CREATE ROLE posduif_demo;
    END IF;
    -- Everybody's by default: temporary tables, and the functions that store large objects or write into the log.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    FOR public_function IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
          AND proname IN ('pg_logical_emit_message', 'lo_creat', 'lo_create', 'lo_from_bytea')
          AND has_function_privilege('posduif_demo', oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', public_function);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

ALTER ROLE posduif_demo LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 4 PASSWORD '{password}';
ALTER ROLE posduif_demo RESET ALL;
-- Only a superuser changes it.
ALTER ROLE posduif_demo SET temp_file_limit = '64MB';

REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM posduif_demo;
GRANT USAGE ON SCHEMA {schema} TO posduif_demo;
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.messages TO posduif_demo;
GRANT SELECT ON {schema}.users, {schema}.message_conflicts TO posduif_demo;
