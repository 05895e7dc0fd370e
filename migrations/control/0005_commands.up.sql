-- Commands to the engine, which reach it through the log in the order of commits. Logical decoding messages would, too, but
-- any role may write those; a row needs a privilege. The log has the row when it is gone from here.
CREATE TABLE posduif.commands (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text NOT NULL,
    -- Words that spaces separate, the tenant first.
    arguments text NOT NULL
);

CREATE FUNCTION posduif.commands_clear() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM posduif.commands USING added WHERE commands.id = added.id;
    RETURN NULL;
END
$$;

CREATE TRIGGER commands_clear AFTER INSERT ON posduif.commands
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION posduif.commands_clear();
