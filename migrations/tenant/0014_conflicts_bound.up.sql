-- Few conflicts of one row are kept: each has both versions, and a device that always sends an old base makes one with each
-- item.

CREATE INDEX message_conflicts_of_message ON {schema}.message_conflicts (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX message_conflicts_of_row ON {schema}.message_conflicts (table_name, row_id) WHERE message_id IS NULL;

-- Removes the oldest that are resolved, where there are more than 50 of the same row. What is open is never removed.
CREATE FUNCTION {schema}.message_conflicts_bound() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.message_id IS NOT NULL THEN
        DELETE FROM {schema}.message_conflicts WHERE id IN (
            SELECT c.id FROM {schema}.message_conflicts c
            WHERE c.message_id = NEW.message_id AND c.id <> NEW.id AND c.resolved_at IS NOT NULL
            ORDER BY c.created_at DESC, c.id DESC
            OFFSET 49
        );
    ELSE
        DELETE FROM {schema}.message_conflicts WHERE id IN (
            SELECT c.id FROM {schema}.message_conflicts c
            WHERE c.message_id IS NULL AND c.table_name = NEW.table_name AND c.row_id = NEW.row_id AND c.id <> NEW.id
            AND c.resolved_at IS NOT NULL
            ORDER BY c.created_at DESC, c.id DESC
            OFFSET 49
        );
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER message_conflicts_bound AFTER INSERT ON {schema}.message_conflicts
    FOR EACH ROW EXECUTE FUNCTION {schema}.message_conflicts_bound();
