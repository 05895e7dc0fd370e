-- Who did what, and from where. Rows are added in the transaction of the act. No tenant is referenced: what was done to a
-- tenant outlives it.
CREATE TABLE posduif.audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant  text,
    -- The ID of a user, `cli`, or `anonymous`.
    actor   text NOT NULL,
    action  text NOT NULL,
    -- The user, device, enrollment or session.
    subject text,
    -- Where the client is.
    address inet,
    detail  jsonb NOT NULL DEFAULT '{}'
);

CREATE INDEX audit_at ON posduif.audit (at);

-- Rows are added and, when they are old, removed; nothing else, also not by the owner of the table.
CREATE FUNCTION posduif.audit_append_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.at < now() - interval '7 days' THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'posduif.audit is append-only: rows may be deleted after 7 days, and never changed'
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_rows BEFORE UPDATE OR DELETE ON posduif.audit
    FOR EACH ROW EXECUTE FUNCTION posduif.audit_append_only();
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON posduif.audit
    FOR EACH STATEMENT EXECUTE FUNCTION posduif.audit_append_only();
