DROP FUNCTION {schema}.upload_items(uuid, text, text, text, text, jsonb, bigint, bigint, bytea[]);
DROP FUNCTION {schema}.upload_row(uuid, text, text, text, jsonb, bigint, boolean);
DROP FUNCTION {schema}.upload_message(uuid, text, text, text, uuid, text, uuid, text, bigint, boolean, timestamptz);
DROP TYPE {schema}.upload_outcome;
DELETE FROM {schema}.message_conflicts WHERE message_id IS NULL;
ALTER TABLE {schema}.message_conflicts DROP COLUMN table_name;
ALTER TABLE {schema}.message_conflicts DROP COLUMN row_id;
ALTER TABLE {schema}.message_conflicts ALTER COLUMN message_id SET NOT NULL;

CREATE OR REPLACE FUNCTION {schema}.message_json(message {schema}.messages) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    form constant text := 'YYYY-MM-DD"T"HH24:MI:SS.US';
BEGIN
    RETURN jsonb_build_object(
        'id', message.id,
        'sender_id', message.sender_id,
        'recipient_id', message.recipient_id,
        'content', message.content,
        'status', message.status,
        'version', message.version,
        'created_at', rtrim(rtrim(to_char(message.created_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'updated_at', rtrim(rtrim(to_char(message.updated_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'synced_at', rtrim(rtrim(to_char(message.synced_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'read_at', rtrim(rtrim(to_char(message.read_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z'
    );
END
$$;

CREATE OR REPLACE FUNCTION {schema}.messages_new_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND (NEW.sender_id, NEW.recipient_id, NEW.content, NEW.read_at, NEW.deleted_at)
        IS DISTINCT FROM (OLD.sender_id, OLD.recipient_id, OLD.content, OLD.read_at, OLD.deleted_at)
    THEN
        NEW.version := OLD.version + 1;
        IF NEW.updated_at = OLD.updated_at THEN
            NEW.updated_at := now();
        END IF;
        NEW.device_id := NULL;
    END IF;
    RETURN NEW;
END
$$;
ALTER TABLE {schema}.messages DROP COLUMN revision;
