-- Messages to groups have no recipient: they are deleted.
DELETE FROM {schema}.messages WHERE group_id IS NOT NULL;

DROP FUNCTION {schema}.upload_message;
CREATE FUNCTION {schema}.upload_message(
    author uuid, author_type text, device text, strategy text,
    id uuid, op text, recipient uuid, content text, base bigint, needs_base boolean, written_at timestamptz
) RETURNS {schema}.upload_outcome
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    outcome {schema}.upload_outcome;
    recipient_type text;
    current {schema}.messages;
    wanted jsonb;
    is_contested boolean;
BEGIN
    SELECT m.* INTO current FROM {schema}.messages m WHERE m.id = id FOR UPDATE;

    IF current.id IS NULL AND op = 'create' THEN
        SELECT u.user_type INTO recipient_type FROM {schema}.users u
            WHERE u.id = recipient AND u.deleted_at IS NULL FOR KEY SHARE;
        IF recipient_type IS NULL THEN
            outcome.status := 'rejected';
            outcome.code := 'INVALID_RECIPIENT';
            RETURN outcome;
        ELSIF author_type = 'web' AND recipient_type = 'web' THEN
            outcome.status := 'rejected';
            outcome.code := 'FORBIDDEN';
            RETURN outcome;
        END IF;
        -- What a phone sends to the web has arrived with this; all else waits for the recipient's device. A phone's clock
        -- may be ahead, a message must not be.
        INSERT INTO {schema}.messages AS m
            (id, sender_id, recipient_id, content, status, created_at, synced_at, device_id)
        VALUES (
            id, author, recipient, content,
            CASE WHEN recipient_type = 'web' THEN 'synced' ELSE 'pending_sync' END,
            least(written_at, now()),
            CASE WHEN recipient_type = 'web' THEN now() END,
            device
        )
        ON CONFLICT ON CONSTRAINT messages_pkey DO NOTHING
        RETURNING m.version, m.revision INTO outcome.version, outcome.revision;
        IF FOUND THEN
            outcome.status := 'applied';
            RETURN outcome;
        END IF;
        -- Another upload inserted it meanwhile; below it is a row like any other.
        SELECT m.* INTO current FROM {schema}.messages m WHERE m.id = id FOR UPDATE;
    END IF;

    outcome.version := current.version;
    outcome.revision := current.revision;
    IF current.id IS NULL THEN
        outcome.status := 'rejected';
        outcome.code := 'NOT_FOUND';
    ELSIF op = 'read' THEN
        IF current.recipient_id <> author THEN
            outcome := ROW('rejected', 'FORBIDDEN', NULL, NULL, NULL, NULL, NULL, NULL);
        ELSIF current.deleted_at IS NOT NULL THEN
            outcome := ROW('rejected', 'NOT_FOUND', NULL, NULL, NULL, NULL, NULL, NULL);
        ELSIF current.read_at IS NOT NULL THEN
            outcome.status := 'duplicate';
        ELSE
            UPDATE {schema}.messages m SET read_at = now(), status = 'read' WHERE m.id = id
                RETURNING m.version, m.revision INTO outcome.version, outcome.revision;
            outcome.status := 'applied';
        END IF;
    ELSIF current.sender_id <> author THEN
        outcome := ROW('rejected', 'FORBIDDEN', NULL, NULL, NULL, NULL, NULL, NULL);
    ELSIF op = 'create' AND (
        current.deleted_at IS NOT NULL OR current.version > 1
        OR (current.content, current.recipient_id) = (content, recipient)
    ) THEN
        outcome.status := 'duplicate';
        outcome.version := 1;
    ELSIF op = 'create' AND current.recipient_id <> recipient THEN
        -- Another message with the same id: no version of this one.
        outcome := ROW('rejected', 'CONFLICT', NULL, NULL, NULL, NULL, NULL, NULL);
    ELSIF op = 'delete' AND current.deleted_at IS NOT NULL THEN
        outcome.status := 'duplicate';
    ELSIF current.deleted_at IS NOT NULL THEN
        outcome := ROW('rejected', 'NOT_FOUND', NULL, NULL, NULL, NULL, NULL, NULL);
    ELSIF op = 'edit' AND current.content = content THEN
        outcome.status := 'duplicate';
    ELSIF needs_base AND op <> 'create' AND base IS NULL THEN
        outcome := ROW('rejected', 'VALIDATION_ERROR',
            'base_version or base_seq is required, or force: true to overwrite any version',
            NULL, NULL, NULL, NULL, NULL);
    ELSE
        is_contested := op = 'create' OR coalesce(base < current.version, false);
        IF is_contested THEN
            wanted := {schema}.message_json(current) || jsonb_build_object('op', op);
            IF op <> 'delete' THEN
                wanted := wanted || jsonb_build_object('content', content);
            END IF;
            outcome.status := 'conflict';
            outcome.code := 'CONFLICT';
            outcome.winner := CASE WHEN strategy = 'last_write_wins' THEN 'mine' ELSE 'theirs' END;
            -- A repeat without a sequence number under `manual` finds its conflict recorded and still open.
            SELECT c.id INTO outcome.conflict_id FROM {schema}.message_conflicts c
                WHERE c.message_id = current.id AND c.user_id = author AND c.device_id = device
                  AND c.resolved_at IS NULL AND c.base_version = coalesce(base, 0)
                  AND c.client_version ->> 'op' = op
                  AND c.client_version ->> 'content' = wanted ->> 'content';
            IF NOT FOUND THEN
                INSERT INTO {schema}.message_conflicts AS c (
                    message_id, user_id, device_id, base_version, client_version, server_version, strategy,
                    resolution, resolved_at
                ) VALUES (
                    current.id, author, device, coalesce(base, 0), wanted, {schema}.message_json(current), strategy,
                    CASE WHEN strategy = 'last_write_wins' THEN 'client' END,
                    CASE WHEN strategy = 'last_write_wins' THEN now() END
                ) RETURNING c.id INTO outcome.conflict_id;
            END IF;
        ELSE
            outcome.status := 'applied';
        END IF;
        IF NOT is_contested OR strategy = 'last_write_wins' THEN
            UPDATE {schema}.messages m
                SET content = CASE WHEN op = 'delete' THEN m.content ELSE content END,
                    deleted_at = CASE WHEN op = 'delete' THEN now() END,
                    version = m.version + 1, device_id = device
                WHERE m.id = id
                RETURNING m.* INTO current;
        END IF;
        outcome.version := current.version;
        outcome.revision := current.revision;
        IF is_contested AND current.deleted_at IS NULL THEN
            outcome.server := {schema}.message_json(current);
        END IF;
    END IF;
    RETURN outcome;
END
$$;

DROP FUNCTION {schema}.upload_items;
CREATE FUNCTION {schema}.upload_items(
    author uuid, device text, tenant text, space text, strategy text,
    items jsonb, first_seq bigint, acked bigint, digests bytea[]
) RETURNS TABLE (
    item integer, status text, code text, message text, version bigint, revision bigint, winner text, conflict_id uuid,
    server jsonb, expected bigint, repeated boolean
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    kept_items constant bigint := 1000;
    kept_items_max constant bigint := 10000;
    author_type text;
    last_seq bigint;
    acked_seq bigint;
    known integer := 0;
    stored posduif.upload_results;
    results jsonb[] := '{}';
    entry jsonb;
    base bigint;
    basis jsonb;
    target text;
    is_stopped boolean := false;
    outcome {schema}.upload_outcome;
BEGIN
    -- Uploads of one user take turns: sent twice at once, the same new ids in another order would be a deadlock. The erasure
    -- of the user takes a turn, too.
    PERFORM pg_advisory_xact_lock(hashtextextended(author::text, 0));
    -- After the wait, in which the user may have been erased.
    SELECT u.user_type INTO author_type
        FROM {schema}.users u
        JOIN {schema}.devices d ON d.user_id = u.id
        WHERE u.id = author AND u.deleted_at IS NULL AND u.disabled_at IS NULL
          AND d.device_id = device AND d.revoked_at IS NULL;
    IF author_type IS NULL THEN
        item := 0;
        code := 'DEVICE_REVOKED';
        RETURN NEXT;
        RETURN;
    END IF;

    IF first_seq IS NOT NULL THEN
        INSERT INTO posduif.upload_devices AS d (tenant, device_id) VALUES (tenant, device) ON CONFLICT DO NOTHING;
        SELECT d.last_seq, d.acked_seq INTO last_seq, acked_seq FROM posduif.upload_devices d
            WHERE d.tenant = tenant AND d.device_id = device FOR UPDATE;
        expected := last_seq + 1;
        item := 0;
        IF first_seq > expected THEN
            code := 'SEQUENCE_GAP';
            RETURN NEXT;
            RETURN;
        END IF;
        known := least(expected - first_seq, cardinality(digests));
        FOR n IN 1 .. known LOOP
            IF stored.first_seq IS NULL OR first_seq + n - 1 > stored.last_seq THEN
                SELECT r.* INTO stored FROM posduif.upload_results r
                    WHERE r.tenant = tenant AND r.device_id = device
                      AND first_seq + n - 1 BETWEEN r.first_seq AND r.last_seq;
            END IF;
            IF stored.digests[first_seq + n - stored.first_seq] IS DISTINCT FROM digests[n] THEN
                code := 'DEVICE_RESTORED';
                RETURN NEXT;
                RETURN;
            END IF;
            results[n] := stored.results[first_seq + n - stored.first_seq];
        END LOOP;
        expected := NULL;
    END IF;

    -- Messages that others change at the same time are locked at once in one order, so that two uploads cannot deadlock.
    PERFORM FROM {schema}.messages m
        WHERE m.id IN (SELECT (e ->> 'id')::uuid FROM jsonb_array_elements(items) WITH ORDINALITY AS list (e, n)
                       WHERE n > known AND NOT e ? 'refused' AND NOT e ? 'table')
        ORDER BY m.id FOR UPDATE;

    FOR item, entry IN SELECT n, e FROM jsonb_array_elements(items) WITH ORDINALITY AS list (e, n) ORDER BY n LOOP
        outcome := ROW(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        IF item <= known THEN
            outcome := jsonb_populate_record(outcome, results[item]);
            IF outcome.status = 'conflict' AND NOT entry ? 'table' AND NOT entry ? 'refused' THEN
                -- It may have become another user's since.
                SELECT {schema}.message_json(m) INTO outcome.server FROM {schema}.messages m
                    WHERE m.id = (entry ->> 'id')::uuid AND m.deleted_at IS NULL
                      AND author IN (m.sender_id, m.recipient_id);
            END IF;
        ELSIF is_stopped THEN
            outcome.status := 'retry';
            outcome.code := 'SYNC_ERROR';
            outcome.message := 'an item before this one could not be applied for now';
        ELSIF entry ? 'refused' THEN
            outcome.status := 'rejected';
            outcome.code := entry #>> '{refused,code}';
            outcome.message := entry #>> '{refused,message}';
        ELSE
            base := (entry ->> 'base')::bigint;
            IF entry ->> 'base_seq' IS NOT NULL THEN
                basis := NULL;
                IF (entry ->> 'base_seq')::bigint >= first_seq THEN
                    basis := results[(entry ->> 'base_seq')::bigint - first_seq + 1];
                ELSE
                    SELECT r.results[(entry ->> 'base_seq')::bigint - r.first_seq + 1] INTO basis
                        FROM posduif.upload_results r
                        WHERE r.tenant = tenant AND r.device_id = device
                          AND (entry ->> 'base_seq')::bigint BETWEEN r.first_seq AND r.last_seq;
                END IF;
                IF basis IS NULL OR (basis ->> 'table', basis ->> 'id')
                    IS DISTINCT FROM (coalesce(entry ->> 'table', 'messages'), entry ->> 'id')
                THEN
                    outcome.status := 'rejected';
                    outcome.code := 'VALIDATION_ERROR';
                    outcome.message := 'base_seq: must be the number of an earlier item for the same row whose result is '
                                       'still stored';
                ELSIF basis ->> 'status' = 'rejected' OR basis ->> 'winner' = 'theirs' THEN
                    outcome.status := 'rejected';
                    outcome.code := 'DEPENDS_ON_FAILED';
                    outcome.message := 'base_seq: the item on which this one is based was not applied';
                ELSE
                    base := coalesce(basis ->> 'base', basis ->> 'version')::bigint;
                END IF;
            END IF;
            IF outcome.status IS NOT NULL THEN
                NULL;
            ELSIF entry ? 'table' THEN
                outcome := {schema}.upload_row(author, device, space, strategy, entry, base,
                    first_seq IS NOT NULL AND entry ->> 'base_seq' IS NULL
                        AND NOT coalesce((entry ->> 'force')::boolean, false));
            ELSE
                outcome := {schema}.upload_message(author, author_type, device, strategy,
                    (entry ->> 'id')::uuid, entry ->> 'op', (entry ->> 'recipient')::uuid, entry ->> 'content', base,
                    first_seq IS NOT NULL AND NOT coalesce((entry ->> 'force')::boolean, false),
                    (entry ->> 'written_at')::timestamptz);
            END IF;
            is_stopped := first_seq IS NOT NULL AND outcome.status = 'retry';
        END IF;
        IF first_seq IS NOT NULL AND item > known AND NOT is_stopped THEN
            target := coalesce(entry ->> 'table', 'messages');
            results[item] := CASE outcome.status
                WHEN 'applied' THEN jsonb_build_object('status', 'applied', 'version', outcome.version,
                    'revision', outcome.revision, 'table', target, 'id', entry ->> 'id')
                    || CASE outcome.winner WHEN 'both' THEN jsonb_build_object('winner', 'both', 'base', base) ELSE '{}' END
                ELSE jsonb_strip_nulls(to_jsonb(outcome) - 'server'
                    || jsonb_build_object('table', target, 'id', entry ->> 'id'))
            END;
        END IF;
        status := outcome.status;
        code := outcome.code;
        message := outcome.message;
        version := outcome.version;
        revision := outcome.revision;
        winner := outcome.winner;
        conflict_id := outcome.conflict_id;
        server := outcome.server;
        repeated := item <= known;
        RETURN NEXT;
    END LOOP;

    IF first_seq IS NOT NULL THEN
        IF cardinality(results) > known THEN
            last_seq := first_seq + cardinality(results) - 1;
            INSERT INTO posduif.upload_results (tenant, device_id, first_seq, last_seq, digests, results)
                VALUES (tenant, device, first_seq + known, last_seq,
                        digests[known + 1 : cardinality(results)], results[known + 1 :]);
        END IF;
        acked_seq := greatest(acked_seq, least(acked, last_seq));
        UPDATE posduif.upload_devices d SET last_seq = last_seq, acked_seq = acked_seq
            WHERE d.tenant = tenant AND d.device_id = device;
        DELETE FROM posduif.upload_results r
            WHERE r.tenant = tenant AND r.device_id = device
              AND r.last_seq <= greatest(least(acked_seq, last_seq - kept_items), last_seq - kept_items_max);
    END IF;
END
$$;

DROP FUNCTION {schema}.resolve_conflict;
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

CREATE OR REPLACE FUNCTION {schema}.messages_new_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.revision = OLD.revision AND NEW IS DISTINCT FROM OLD THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    IF (NEW.read_at, NEW.deleted_at, NEW.content) IS DISTINCT FROM (OLD.read_at, OLD.deleted_at, OLD.content)
        AND NEW.updated_at = OLD.updated_at
    THEN
        NEW.updated_at := now();
    END IF;
    -- A receipt is no edit: read_at, status and synced_at leave the version as it is.
    IF NEW.version = OLD.version AND (NEW.sender_id, NEW.recipient_id, NEW.content, NEW.deleted_at)
        IS DISTINCT FROM (OLD.sender_id, OLD.recipient_id, OLD.content, OLD.deleted_at)
    THEN
        NEW.version := OLD.version + 1;
        -- An upload counts the version itself and names its device; any other writer has none.
        NEW.device_id := NULL;
    END IF;
    RETURN NEW;
END
$$;

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
        'revision', message.revision,
        'created_at', rtrim(rtrim(to_char(message.created_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'updated_at', rtrim(rtrim(to_char(message.updated_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'synced_at', rtrim(rtrim(to_char(message.synced_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z',
        'read_at', rtrim(rtrim(to_char(message.read_at AT TIME ZONE 'UTC', form), '0'), '.') || 'Z'
    );
END
$$;

DROP TRIGGER messages_number_new ON {schema}.messages;
DROP TRIGGER messages_number_moved ON {schema}.messages;
DROP FUNCTION {schema}.messages_number;
DROP FUNCTION {schema}.send_to_group;
DROP FUNCTION {schema}.unread_in_groups;
DROP FUNCTION {schema}.mark_read;
DROP FUNCTION {schema}.not_a_member;
DROP FUNCTION {schema}.is_member;
DROP FUNCTION {schema}.memberships;
DROP FUNCTION {schema}.lock_group;
DROP TABLE {schema}.message_reads;
ALTER TABLE {schema}.messages DROP COLUMN number;
ALTER TABLE {schema}.messages DROP COLUMN group_id;
ALTER TABLE {schema}.messages DROP COLUMN group_name;
ALTER TABLE {schema}.messages ALTER COLUMN recipient_id SET NOT NULL;
