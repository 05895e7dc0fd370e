-- Fires posduif.full_identity() after every statement that can add a table to a schema.
CREATE EVENT TRIGGER posduif_full_identity ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE SCHEMA', 'CREATE EXTENSION')
    EXECUTE FUNCTION posduif.full_identity()
