-- Uploads that are applied exactly once: items with sequence numbers, bases that name what the device saw, and conflicts of
-- own tables that are kept. upload_messages() and upload_rows() stay for engines of the version before, which may run at the
-- same time during an upgrade.

-- `version` counts the content of a message, for conflicts; `revision` counts every change of the row, so that a device can
-- tell which of two copies is newer.
ALTER TABLE {schema}.messages ADD COLUMN revision bigint NOT NULL DEFAULT 1 CHECK (revision > 0);

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

-- A conflict is about a message, or about a row of an own table, which it names.
ALTER TABLE {schema}.message_conflicts ALTER COLUMN message_id DROP NOT NULL;
ALTER TABLE {schema}.message_conflicts ADD COLUMN table_name text;
ALTER TABLE {schema}.message_conflicts ADD COLUMN row_id text;
ALTER TABLE {schema}.message_conflicts ADD CHECK (
    (message_id IS NULL) = (table_name IS NOT NULL) AND (table_name IS NULL) = (row_id IS NULL)
);

-- What became of an item. `base_failed` is only passed between the functions here.
CREATE TYPE {schema}.upload_outcome AS (
    status text, code text, message text, version bigint, revision bigint, winner text, conflict_id uuid, server jsonb
);

-- Applies one item to a message.
--
--   create  A new id is inserted. A known id of the same sender is a duplicate when it says the same or has since
--           moved on (a repeated create never overwrites what came after it); else it is an edit of unknown base.
--   edit    By the sender. The text that is there already is a duplicate.
--   delete  By the sender, soft. A deleted message stays deleted.
--   read    By the recipient. Reading contests nothing, so its base does not matter.
--
-- An edit or delete whose base is older than the row is a conflict, kept with both versions in message_conflicts: under
-- last_write_wins the device's version then stands, under manual the row stays. Without a base nothing is contested;
-- `needs_base` refuses that.
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

-- Applies one item to a row of an own table. `entry` has `table`, `owner` (the column that names whose row it is, or null),
-- `by` (groups whose members may write: the `column` of the row with the group's id, and the `members`, `id` and `user` of
-- the group's table), `op`, `id` as text, `row` (only columns that may be written), `columns` (all of those), `base_row`
-- (values that the device saw in the columns of `row`) and `merge`. The caller has checked which tables and columns are
-- open; `space` is the tenant's schema.
--
--   create  A new id is inserted, with the author as its owner. A known one of the author's is a duplicate when it says
--           the same, is deleted, or has a version above 1; else a conflict.
--   edit    By the owner or a member. What is there already is a duplicate.
--   delete  By the owner or a member; soft where the table has `deleted_at`. What has gone already is a duplicate.
--
-- A row goes only into groups of which the author is a member.
--
-- A column `version` that is not the device's to write grows with each change. An older base is a conflict: the row stays,
-- and both versions are kept in message_conflicts. With `merge` it is none as long as the columns of `row` still have the
-- values of `base_row`. What Postgres itself refuses is that item's result: each runs in a transaction of its own.
CREATE FUNCTION {schema}.upload_row(
    author uuid, device text, space text, strategy text, entry jsonb, base bigint, needs_base boolean
) RETURNS {schema}.upload_outcome
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    outcome {schema}.upload_outcome;
    relation regclass := to_regclass(format('%I.%I', space, entry ->> 'table'));
    op text := entry ->> 'op';
    id text := entry ->> 'id';
    owner text := entry ->> 'owner';
    -- The condition under which the row `t` is the author's to write, and the one under which the groups are that the item
    -- puts it into; $author stands for the author's id as text.
    mine text;
    allowed text;
    is_allowed boolean;
    given jsonb;
    seen jsonb;
    keys text[];
    id_type text;
    is_versioned boolean;
    is_soft boolean;
    named text;
    current jsonb;
    wanted jsonb;
    is_own boolean;
    is_deleted boolean;
    is_same boolean;
    is_mergeable boolean;
    returned text;
    state text;
BEGIN
    SELECT format_type(a.atttypid, a.atttypmod) INTO id_type FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attname = 'id' AND NOT a.attisdropped;
    IF id_type IS NULL THEN
        RAISE undefined_table USING MESSAGE = format('the tenant has no table %I with a column id', entry ->> 'table');
    END IF;
    SELECT coalesce(bool_or(a.attname = 'version' AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
                            AND NOT entry -> 'columns' ? 'version'), false),
           coalesce(bool_or(a.attname = 'deleted_at'), false)
        INTO is_versioned, is_soft FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;

    -- As everywhere in the API, bytes are base64 in JSON; Postgres reads them as hex.
    SELECT coalesce(jsonb_object_agg(c.key, c.value) FILTER (WHERE c.part = 'row'), '{}'),
           coalesce(jsonb_object_agg(c.key, c.value) FILTER (WHERE c.part = 'base_row'), '{}'),
           coalesce(array_agg(c.key) FILTER (WHERE c.part = 'row'), '{}'),
           string_agg(format('%I', c.key), ', ') FILTER (WHERE c.part = 'row')
        INTO given, seen, keys, named
        FROM (
            SELECT p.part, v.key, CASE
                       WHEN jsonb_typeof(v.value) = 'string' AND a.atttypid = 'bytea'::regtype
                       THEN to_jsonb('\x' || encode(decode(v.value #>> '{}', 'base64'), 'hex')) ELSE v.value END AS value
            FROM (VALUES ('row'), ('base_row')) AS p (part)
            CROSS JOIN LATERAL jsonb_each(CASE jsonb_typeof(entry -> p.part) WHEN 'object' THEN entry -> p.part ELSE '{}' END) v
            LEFT JOIN pg_attribute a ON a.attrelid = relation AND a.attname = v.key AND NOT a.attisdropped
        ) c;

    SELECT string_agg(c.is_member, ' OR '),
           string_agg(format('(t.%I IS NULL OR %s)', c.of_row, c.is_member), ' AND ') FILTER (WHERE c.of_row = ANY (keys))
        INTO mine, allowed
        FROM (
            SELECT g ->> 'column' AS of_row, format(
                       'EXISTS (SELECT FROM %I.%I m WHERE m.%I::text = t.%I::text AND m.%I::text = $author%s)',
                       space, g ->> 'members', g ->> 'id', g ->> 'column', g ->> 'user',
                       CASE WHEN EXISTS (
                           SELECT FROM pg_attribute a
                           WHERE a.attrelid = to_regclass(format('%I.%I', space, g ->> 'members'))
                             AND a.attname = 'deleted_at' AND NOT a.attisdropped
                       ) THEN ' AND m.deleted_at IS NULL' ELSE '' END
                   ) AS is_member
            FROM jsonb_array_elements(coalesce(entry -> 'by', '[]')) g
        ) c;
    mine := concat_ws(' OR ', 't.' || quote_ident(owner) || '::text = $author', mine);
    -- Without an owner, a new row must be of a group.
    allowed := concat_ws(' AND ', CASE WHEN owner IS NULL AND op = 'create' THEN format('(%s)', mine) END, allowed);
    allowed := coalesce(nullif(allowed, ''), 'true');

    -- Who may write stands in the condition: of an id that is not unique, only the author's own row is read and written.
    EXECUTE format('SELECT to_jsonb(t), %1$s FROM %2$s t WHERE t.id = $1::%3$s '
                   'ORDER BY (%1$s) DESC NULLS LAST LIMIT 1 FOR UPDATE', replace(mine, '$author', '$2'), relation, id_type)
        INTO current, is_own USING id, author::text;
    is_deleted := is_soft AND current ->> 'deleted_at' IS NOT NULL;
    IF is_versioned THEN
        outcome.version := (current ->> 'version')::bigint;
    END IF;
    returned := CASE WHEN is_versioned THEN 't.version' ELSE 'NULL' END;
    -- Compared as Postgres prints them: the device may write the same value in another form.
    EXECUTE format('SELECT to_jsonb(r), to_jsonb(s) FROM jsonb_populate_record(NULL::%1$s, $1) r, '
                   'jsonb_populate_record(NULL::%1$s, $2) s', relation)
        INTO wanted, seen USING given, seen;
    is_same := NOT EXISTS (SELECT FROM unnest(keys) k WHERE current -> k IS DISTINCT FROM wanted -> k);
    is_mergeable := op = 'edit' AND coalesce((entry ->> 'merge')::boolean, false)
        AND NOT EXISTS (SELECT FROM unnest(keys) k
                        WHERE NOT (entry -> 'base_row') ? k OR current -> k IS DISTINCT FROM seen -> k);

    IF base IS NOT NULL AND NOT is_versioned THEN
        outcome.status := 'rejected';
        outcome.code := 'VALIDATION_ERROR';
        outcome.message := 'base_version: the table has no column version that the server counts';
    ELSIF current IS NULL AND op = 'create' THEN
        EXECUTE format('INSERT INTO %1$s AS t (id%2$s%3$s) SELECT $1::%4$s%5$s%6$s '
                       'FROM jsonb_populate_record(NULL::%1$s, $2) r RETURNING %7$s, %8$s',
                       relation, ', ' || quote_ident(owner), coalesce(', ' || named, ''), id_type, ', r.' || quote_ident(owner),
                       (SELECT string_agg(format(', r.%I', k), '') FROM unnest(keys) k), returned, replace(allowed, '$author', '$3'))
            INTO outcome.version, is_allowed
            USING id, CASE WHEN owner IS NULL THEN given ELSE given || jsonb_build_object(owner, author) END, author::text;
        outcome.status := 'applied';
    ELSIF current IS NULL THEN
        outcome.status := CASE WHEN op = 'delete' THEN 'duplicate' ELSE 'rejected' END;
        outcome.code := CASE WHEN op <> 'delete' THEN 'NOT_FOUND' END;
    ELSIF NOT coalesce(is_own, false) THEN
        outcome.status := 'rejected';
        outcome.code := 'FORBIDDEN';
        outcome.version := NULL;
    ELSIF is_deleted THEN
        outcome.status := CASE WHEN op = 'edit' THEN 'rejected' ELSE 'duplicate' END;
        outcome.code := CASE WHEN op = 'edit' THEN 'NOT_FOUND' END;
    ELSIF op <> 'delete' AND is_same OR op = 'create' AND is_versioned AND outcome.version > 1 THEN
        outcome.status := 'duplicate';
    ELSIF needs_base AND is_versioned AND op <> 'create' AND base IS NULL THEN
        outcome.status := 'rejected';
        outcome.code := 'VALIDATION_ERROR';
        outcome.message := 'base_version or base_seq is required, or force: true to overwrite any version';
    ELSIF op = 'create' OR base < outcome.version AND NOT is_mergeable THEN
        outcome.status := 'conflict';
        outcome.code := 'CONFLICT';
        outcome.winner := 'theirs';
        -- A repeat without a sequence number finds its conflict recorded and still open.
        SELECT c.id INTO outcome.conflict_id FROM {schema}.message_conflicts c
            WHERE c.user_id = author AND c.resolved_at IS NULL AND c.table_name = entry ->> 'table' AND c.row_id = id
              AND c.device_id = device AND c.base_version = coalesce(base, 0)
              AND c.client_version = jsonb_build_object('op', op, 'row', entry -> 'row');
        IF NOT FOUND THEN
            INSERT INTO {schema}.message_conflicts AS c
                (table_name, row_id, user_id, device_id, base_version, client_version, server_version, strategy)
            VALUES (
                entry ->> 'table', id, author, device, coalesce(base, 0),
                jsonb_build_object('op', op, 'row', entry -> 'row'), current, 'manual'
            ) RETURNING c.id INTO outcome.conflict_id;
        END IF;
    ELSIF op = 'delete' AND NOT is_soft THEN
        EXECUTE format('DELETE FROM %s t WHERE t.id = $1::%s AND (%s)', relation, id_type, replace(mine, '$author', '$2'))
            USING id, author::text;
        outcome.status := 'applied';
        outcome.version := NULL;
    ELSE
        EXECUTE format('UPDATE %1$s t SET %2$s%3$s FROM jsonb_populate_record(NULL::%1$s, $2) r '
                       'WHERE t.id = $1::%4$s AND (%6$s) RETURNING %5$s, %7$s',
                       relation,
                       CASE WHEN op = 'delete' THEN 'deleted_at = now()'
                            ELSE (SELECT string_agg(format('%1$I = r.%1$I', k), ', ') FROM unnest(keys) k) END,
                       CASE WHEN is_versioned THEN ', version = t.version + 1' END,
                       id_type, returned, replace(mine, '$author', '$3'), replace(allowed, '$author', '$3'))
            INTO outcome.version, is_allowed USING id, given, author::text;
        outcome.status := 'applied';
    END IF;
    IF NOT coalesce(is_allowed, true) THEN
        RAISE EXCEPTION USING ERRCODE = 'PF001', MESSAGE = 'the row names a group of which you are no member';
    END IF;
    RETURN outcome;
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
        outcome := ROW(NULL, NULL, SQLERRM, NULL, NULL, NULL, NULL, NULL);
        CASE
            -- Data that does not fit, constraints, check options, and what triggers raise.
            WHEN state ~ '^(22|23|44|P0001)' THEN
                outcome.status := 'rejected';
                outcome.code := CASE WHEN state = '23505' THEN 'CONFLICT' ELSE 'VALIDATION_ERROR' END;
            WHEN state = 'PF001' THEN
                outcome.status := 'rejected';
                outcome.code := 'FORBIDDEN';
            -- Names and privileges, deadlocks, locks: the operator or time corrects these, not the device.
            WHEN state ~ '^(42|40|55)' THEN
                outcome.status := 'retry';
                outcome.code := 'SYNC_ERROR';
            ELSE
                RAISE;
        END CASE;
        RETURN outcome;
END
$$;

-- Applies an upload in its order, in one transaction; a row for each item.
--
-- Each element of `items` is `{"refused": {"code", "message"}}` for an item of wrong form, has `table` for a row of an own
-- table (see upload_row()), or else `id`, `op`, `recipient`, `content` and `written_at` for a message; all may have `base`,
-- `base_seq` and `force`. Texts are free of NUL and within their limits, which the caller has checked.
--
-- With `first_seq` the items have consecutive sequence numbers from there on, which the device counts. Then each is applied
-- exactly once: a number that was processed before gets its first result again, whatever has happened since. `digests` tell
-- a repeat from another item under the same number. Instead of results there is a single row with the item 0 and the code
--
--   SEQUENCE_GAP     when numbers are missing before the first one,
--   DEVICE_RESTORED  when a known number comes with another content, or was acknowledged: the device was restored from a
--                    backup, or copied.
--
-- Nothing is applied then, and `expected` is the next number. An item that cannot be applied for now (`retry`) stops the
-- upload: it and those behind it keep their numbers and can be sent again.
--
-- Results are kept until the device acknowledges them (`acked`), the last 1,000 items longer, and never more than 10,000.
CREATE FUNCTION {schema}.upload_items(
    author uuid, device text, tenant text, space text, strategy text,
    items jsonb, first_seq bigint, acked bigint, digests bytea[]
) RETURNS TABLE (
    item integer, status text, code text, message text, version bigint, revision bigint, winner text, conflict_id uuid,
    server jsonb, expected bigint
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
    is_stopped boolean := false;
    outcome {schema}.upload_outcome;
BEGIN
    SELECT u.user_type INTO author_type FROM {schema}.users u WHERE u.id = author;
    -- Uploads of one user take turns: sent twice at once, the same new ids in another order would be a deadlock.
    PERFORM pg_advisory_xact_lock(hashtextextended(author::text, 0));

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
                    base := (basis ->> 'version')::bigint;
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
            results[item] := jsonb_strip_nulls(to_jsonb(outcome) - 'server'
                || jsonb_build_object('table', coalesce(entry ->> 'table', 'messages'), 'id', entry ->> 'id'));
        END IF;
        status := outcome.status;
        code := outcome.code;
        message := outcome.message;
        version := outcome.version;
        revision := outcome.revision;
        winner := outcome.winner;
        conflict_id := outcome.conflict_id;
        server := outcome.server;
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
