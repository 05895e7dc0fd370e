-- The transactional outbox: a row here is an event for the clients of users, in the order of commits. The row is removed in
-- the transaction that inserts it; the log has it.
CREATE TABLE {schema}.outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event      text NOT NULL CHECK (event ~ '^[a-z0-9_]{1,64}$'),
    -- Events that the server itself sends.
    CHECK (event NOT IN ('bye', 'device_added', 'device_changed', 'group_joined', 'group_left', 'hello', 'presence',
                         'reset', 'revoked', 'sync_required', 'tenant_paused', 'tenant_resumed')),
    -- A list of the ids of users, a group as an object of its name and its id, or "tenant".
    recipients jsonb NOT NULL CHECK (
        recipients = '"tenant"' OR (jsonb_typeof(recipients) = 'array' AND jsonb_array_length(recipients) <= 1000)
        OR (jsonb_typeof(recipients) = 'object'
            AND jsonb_array_length(jsonb_path_query_array(recipients, '$.keyvalue()')) = 1)
    ),
    data       jsonb NOT NULL DEFAULT 'null' CHECK (octet_length(data::text) <= 65536)
);

-- Its owner removes the rows, so that a role needs INSERT on the table only.
CREATE FUNCTION {schema}.outbox_clear() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM recipient::uuid
    FROM added, jsonb_array_elements_text(
        CASE jsonb_typeof(added.recipients) WHEN 'array' THEN added.recipients ELSE '[]' END
    ) AS recipient;
    DELETE FROM {schema}.outbox USING added WHERE outbox.id = added.id;
    RETURN NULL;
END
$$;

CREATE TRIGGER outbox_clear AFTER INSERT ON {schema}.outbox
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION {schema}.outbox_clear();
