-- Uploads of devices: a whole batch in one statement, a result for each item.

-- A message as the API shows it. Timestamps are RFC 3339 in UTC, without trailing zeros.
CREATE FUNCTION {schema}.message_json(message {schema}.messages) RETURNS jsonb
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

-- Applies a device's batch in its order. The arrays run in parallel, an element each item; texts are free of NUL and
-- within their limits, which the caller has checked. Nothing that an item says makes the statement fail.
--
--   create  A new id is inserted. A known id of the same sender is a duplicate when it says the same or has since
--           moved on (a repeated create never overwrites what came after it); else it is an edit of unknown base.
--   edit    By the sender. The text that is there already is a duplicate, which covers a repeat after a lost answer.
--   delete  By the sender, soft. A deleted message stays deleted.
--   read    By the recipient. Reading contests nothing, so its base does not matter.
--
-- An edit or delete whose base is older than the row is a conflict, kept with both versions in message_conflicts:
-- under last_write_wins the device's version then stands, under manual the row stays.
CREATE FUNCTION {schema}.upload_messages(
    author uuid, device text, strategy text,
    ids uuid[], ops text[], recipients uuid[], contents text[], bases bigint[], times timestamptz[]
) RETURNS TABLE (item integer, status text, code text, version bigint, server jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    author_type text;
    recipient_type text;
    op text;
    base bigint;
    contested boolean;
    server_row {schema}.messages;
    wanted jsonb;
BEGIN
    SELECT u.user_type INTO author_type FROM {schema}.users u WHERE u.id = author;
    -- Batches of one user take turns: sent twice at once, the same new ids in another order would be a deadlock.
    PERFORM pg_advisory_xact_lock(hashtextextended(author::text, 0));
    -- So would known rows that somebody else changes, unless all are locked at once in one order.
    PERFORM FROM {schema}.messages m WHERE m.id = ANY (ids) ORDER BY m.id FOR UPDATE;

    FOR n IN 1 .. coalesce(array_length(ids, 1), 0) LOOP
        item := n;
        status := NULL;
        code := NULL;
        version := NULL;
        server := NULL;
        op := ops[n];
        base := bases[n];

        SELECT m.* INTO server_row FROM {schema}.messages m WHERE m.id = ids[n] FOR UPDATE;

        IF server_row.id IS NULL AND op = 'create' THEN
            SELECT u.user_type INTO recipient_type FROM {schema}.users u
                WHERE u.id = recipients[n] AND u.deleted_at IS NULL FOR KEY SHARE;
            IF recipient_type IS NULL THEN
                status := 'rejected';
                code := 'INVALID_RECIPIENT';
            ELSIF author_type = 'web' AND recipient_type = 'web' THEN
                status := 'rejected';
                code := 'FORBIDDEN';
            ELSE
                -- What a phone sends to the web has arrived with this; all else waits for the recipient's device. A
                -- phone's clock may be ahead, a message must not be.
                INSERT INTO {schema}.messages AS m
                    (id, sender_id, recipient_id, content, status, created_at, synced_at, device_id)
                VALUES (
                    ids[n], author, recipients[n], contents[n],
                    CASE WHEN recipient_type = 'web' THEN 'synced' ELSE 'pending_sync' END,
                    least(times[n], now()),
                    CASE WHEN recipient_type = 'web' THEN now() END,
                    device
                )
                ON CONFLICT (id) DO NOTHING
                RETURNING m.version INTO version;
                IF FOUND THEN
                    status := 'applied';
                ELSE
                    -- Another batch inserted it meanwhile; below it is a row like any other.
                    SELECT m.* INTO server_row FROM {schema}.messages m WHERE m.id = ids[n] FOR UPDATE;
                END IF;
            END IF;
            IF status IS NOT NULL THEN
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;

        IF server_row.id IS NULL THEN
            status := 'rejected';
            code := 'NOT_FOUND';
        ELSIF op = 'read' THEN
            IF server_row.recipient_id <> author THEN
                status := 'rejected';
                code := 'FORBIDDEN';
            ELSIF server_row.deleted_at IS NOT NULL THEN
                status := 'rejected';
                code := 'NOT_FOUND';
            ELSIF server_row.read_at IS NOT NULL THEN
                status := 'duplicate';
                version := server_row.version;
            ELSE
                UPDATE {schema}.messages m
                    SET read_at = now(), status = 'read', version = m.version + 1, updated_at = now(), device_id = device
                    WHERE m.id = server_row.id
                    RETURNING m.version INTO version;
                status := 'applied';
            END IF;
        ELSIF server_row.sender_id <> author THEN
            status := 'rejected';
            code := 'FORBIDDEN';
        ELSIF op = 'create' AND (
            server_row.deleted_at IS NOT NULL OR server_row.version > 1
            OR (server_row.content, server_row.recipient_id) = (contents[n], recipients[n])
        ) THEN
            status := 'duplicate';
            version := server_row.version;
        ELSIF op = 'create' AND server_row.recipient_id <> recipients[n] THEN
            -- Another message with the same id: no version of this one.
            status := 'rejected';
            code := 'CONFLICT';
        ELSIF op = 'delete' AND server_row.deleted_at IS NOT NULL THEN
            status := 'duplicate';
            version := server_row.version;
        ELSIF server_row.deleted_at IS NOT NULL THEN
            status := 'rejected';
            code := 'NOT_FOUND';
        ELSIF op = 'edit' AND server_row.content = contents[n] THEN
            status := 'duplicate';
            version := server_row.version;
        ELSE
            -- Without a base nothing is contested.
            contested := op = 'create' OR coalesce(base < server_row.version, false);
            wanted := {schema}.message_json(server_row) || jsonb_build_object('op', op);
            IF op <> 'delete' THEN
                wanted := wanted || jsonb_build_object('content', contents[n]);
            END IF;
            IF contested THEN
                status := 'conflict';
                code := 'CONFLICT';
                -- A repeat under `manual` finds its conflict recorded and still open.
                INSERT INTO {schema}.message_conflicts AS c (
                    message_id, user_id, device_id, base_version, client_version, server_version, strategy,
                    resolution, resolved_at
                )
                SELECT server_row.id, author, device, coalesce(base, 0), wanted,
                    {schema}.message_json(server_row), strategy,
                    CASE WHEN strategy = 'last_write_wins' THEN 'client' END,
                    CASE WHEN strategy = 'last_write_wins' THEN now() END
                WHERE NOT EXISTS (
                    SELECT FROM {schema}.message_conflicts c
                    WHERE c.message_id = server_row.id AND c.user_id = author AND c.device_id = device
                      AND c.resolved_at IS NULL AND c.base_version = coalesce(base, 0)
                      AND c.client_version ->> 'op' = op
                      AND c.client_version ->> 'content' = wanted ->> 'content'
                );
            ELSE
                status := 'applied';
            END IF;
            IF NOT contested OR strategy = 'last_write_wins' THEN
                UPDATE {schema}.messages m
                    SET content = CASE WHEN op = 'delete' THEN m.content ELSE contents[n] END,
                        deleted_at = CASE WHEN op = 'delete' THEN now() END,
                        version = m.version + 1, updated_at = now(), device_id = device
                    WHERE m.id = server_row.id
                    RETURNING m.* INTO server_row;
            END IF;
            version := server_row.version;
            IF contested THEN
                server := {schema}.message_json(server_row);
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
