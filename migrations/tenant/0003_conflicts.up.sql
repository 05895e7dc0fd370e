-- Conflicts: listed, resolved once, and gone with their message.

CREATE INDEX message_conflicts_message ON {schema}.message_conflicts (message_id) WHERE resolved_at IS NULL;

-- A deleted message has nothing left to decide.
CREATE FUNCTION {schema}.messages_close_conflicts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.message_conflicts SET resolution = 'server', resolved_at = now()
        WHERE message_id = OLD.id AND resolved_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER messages_close_conflicts AFTER UPDATE OF deleted_at ON {schema}.messages
    FOR EACH ROW WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL)
    EXECUTE FUNCTION {schema}.messages_close_conflicts();
CREATE TRIGGER messages_close_conflicts_of_row AFTER DELETE ON {schema}.messages
    FOR EACH ROW EXECUTE FUNCTION {schema}.messages_close_conflicts();

-- Resolves a conflict of a user: `client` makes the device's version stand, `server` leaves the message, `merged` gives
-- it another text. `base` is the version of the message that the user decided upon, by default the one in the conflict.
--
--   resolved  done, or done before in the same way
--   closed    it was resolved otherwise
--   moved     the message has changed beyond the base; nothing is done, and `version` is where it stands
--   foreign   it is another user's
--   absent    there is none
CREATE FUNCTION {schema}.resolve_conflict(author uuid, conflict uuid, wanted text, merged text, base bigint)
RETURNS TABLE (outcome text, version bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found {schema}.message_conflicts;
    message {schema}.messages;
    text_now text;
BEGIN
    -- Message before conflict, as everybody locks them: its deletion closes its conflicts.
    PERFORM FROM {schema}.messages m
        WHERE m.id = (SELECT c.message_id FROM {schema}.message_conflicts c WHERE c.id = conflict AND c.user_id = author)
        FOR UPDATE;
    SELECT c.* INTO found FROM {schema}.message_conflicts c WHERE c.id = conflict FOR UPDATE;
    IF found.user_id IS DISTINCT FROM author THEN
        RETURN QUERY SELECT CASE WHEN found.id IS NULL THEN 'absent' ELSE 'foreign' END, NULL::bigint;
        RETURN;
    END IF;
    SELECT m.* INTO message FROM {schema}.messages m WHERE m.id = found.message_id AND m.deleted_at IS NULL;
    text_now := CASE wanted WHEN 'client' THEN found.client_version ->> 'content' WHEN 'merged' THEN merged END;
    IF found.resolved_at IS NOT NULL THEN
        RETURN QUERY SELECT
            CASE WHEN found.resolution = wanted AND (wanted <> 'merged' OR message.content = merged)
                THEN 'resolved' ELSE 'closed' END,
            message.version;
        RETURN;
    END IF;
    IF wanted <> 'server' AND message.version IS DISTINCT FROM coalesce(base, (found.server_version ->> 'version')::bigint)
    THEN
        RETURN QUERY SELECT 'moved', message.version;
        RETURN;
    END IF;
    UPDATE {schema}.message_conflicts c SET resolution = wanted, resolved_by = author, resolved_at = now()
        WHERE c.id = conflict;
    IF wanted = 'client' AND found.client_version ->> 'op' = 'delete' THEN
        UPDATE {schema}.messages m SET deleted_at = now() WHERE m.id = message.id RETURNING m.version INTO message.version;
    ELSIF wanted <> 'server' THEN
        UPDATE {schema}.messages m SET content = text_now WHERE m.id = message.id
            RETURNING m.version INTO message.version;
    END IF;
    RETURN QUERY SELECT 'resolved', message.version;
END
$$;
