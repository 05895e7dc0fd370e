-- Messages to groups: a message has a recipient or a group, all of whose members may read it and send to it.

ALTER TABLE {schema}.messages
    ALTER COLUMN recipient_id DROP NOT NULL,
    ADD COLUMN group_name text CHECK (group_name COLLATE "C" ~ '^[a-z0-9_]{1,32}$'),
    ADD COLUMN group_id text CHECK (group_id COLLATE "C" ~ '^[!-~]{1,128}$'),
    -- The place of the message in its group, from 1, in the order of commits: read marks count by it. Times are those of
    -- devices, and a message that was written offline arrives behind newer ones.
    ADD COLUMN number bigint CHECK (number > 0),
    ADD CONSTRAINT messages_audience CHECK (
        (recipient_id IS NULL) = (group_id IS NOT NULL)
        AND (group_name IS NULL) = (group_id IS NULL) AND (number IS NULL) = (group_id IS NULL)
    );
CREATE UNIQUE INDEX messages_group ON {schema}.messages (group_id, group_name, number) WHERE group_id IS NOT NULL;

-- Up to where a member has read a group. A row of the member: all of the member's devices and pages receive it.
CREATE TABLE {schema}.message_reads (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    uuid NOT NULL REFERENCES {schema}.users ON DELETE CASCADE,
    group_name text NOT NULL,
    group_id   text NOT NULL,
    -- That of the last message that was read.
    number     bigint NOT NULL CHECK (number > 0),
    read_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, group_name, group_id)
);
CREATE INDEX message_reads_group ON {schema}.message_reads (group_id, group_name, number);
ALTER TABLE {schema}.message_reads REPLICA IDENTITY FULL;

-- Until the transaction ends, no other one adds a message to the group: so numbers follow the order of commits.
CREATE FUNCTION {schema}.lock_group(name text, id text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock('{schema}.messages'::regclass::oid::integer, hashtext(concat(name, ':', id)))
$$;

-- Numbers a message of a group. A number that a mark has is not given again, whatever was deleted with SQL DELETE. Any
-- role that may insert a message may do so: the function has rights of its own.
CREATE FUNCTION {schema}.messages_number() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.group_id IS NULL THEN
        NEW.number := NULL;
        RETURN NEW;
    END IF;
    IF TG_OP = 'INSERT' OR (NEW.group_name, NEW.group_id) IS DISTINCT FROM (OLD.group_name, OLD.group_id) THEN
        PERFORM {schema}.lock_group(NEW.group_name, NEW.group_id);
        SELECT 1 + greatest(
            (SELECT max(m.number) FROM {schema}.messages m WHERE m.group_id = NEW.group_id AND m.group_name = NEW.group_name),
            (SELECT max(r.number) FROM {schema}.message_reads r
             WHERE r.group_id = NEW.group_id AND r.group_name = NEW.group_name),
            0
        ) INTO NEW.number;
    END IF;
    IF NEW.status = 'pending_sync' THEN
        NEW.status := 'synced';
        NEW.synced_at := coalesce(NEW.synced_at, now());
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER messages_number_new BEFORE INSERT ON {schema}.messages
    FOR EACH ROW WHEN (NEW.group_id IS NOT NULL OR NEW.number IS NOT NULL) EXECUTE FUNCTION {schema}.messages_number();
CREATE TRIGGER messages_number_moved BEFORE UPDATE OF recipient_id, group_name, group_id, number ON {schema}.messages
    FOR EACH ROW EXECUTE FUNCTION {schema}.messages_number();

-- The memberships of a user in groups of one kind, as what follows FROM: rows `m`. `list` is what the configuration says of the
-- kind: `schema` (that of the tenant if absent), `members`, `id` and `user` (the table and its columns), `authors` (the values
-- that name the user), `tenant` (`column` and `value`, in a table of several tenants). Null if there is no such table, or it lacks
-- a column: then no user is a member.
CREATE FUNCTION {schema}.memberships(space text, list jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    relation regclass;
    authors text[];
    user_type oid;
    has_id boolean;
    is_soft boolean;
BEGIN
    IF list IS NULL THEN
        RETURN NULL;
    END IF;
    relation := to_regclass(format('%I.%I', coalesce(list ->> 'schema', space), list ->> 'members'));
    SELECT max(a.atttypid) FILTER (WHERE a.attname = list ->> 'user'), bool_or(a.attname = list ->> 'id'),
           bool_or(a.attname = 'deleted_at')
        INTO user_type, has_id, is_soft
        FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
    IF user_type IS NULL OR NOT has_id THEN
        RETURN NULL;
    END IF;
    authors := ARRAY(SELECT jsonb_array_elements_text(list -> 'authors'));
    -- A comparison in the column's own type can use an index.
    RETURN format('%s m WHERE ', relation) || CASE user_type
        WHEN 'uuid'::regtype THEN format('m.%I = ANY (%L::uuid[])', list ->> 'user', ARRAY(
            SELECT a FROM unnest(authors) a WHERE a ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        ))
        WHEN 'text'::regtype THEN format('m.%I = ANY (%L::text[])', list ->> 'user', authors)
        ELSE format('m.%I::text = ANY (%L::text[])', list ->> 'user', authors)
    END || CASE WHEN is_soft THEN ' AND m.deleted_at IS NULL' ELSE '' END
        || CASE WHEN list ? 'tenant' THEN format(' AND m.%I::text = %L', list #>> '{tenant,column}', list #>> '{tenant,value}')
           ELSE '' END;
END
$$;

-- Whether the user whom `list` names (see memberships()) is a member of the group with this id, as the statement that asks sees
-- it. Null if the memberships cannot be read.
CREATE FUNCTION {schema}.is_member(space text, list jsonb, id text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
    memberships text;
    id_type text;
    is_found boolean;
BEGIN
    memberships := {schema}.memberships(space, list);
    IF memberships IS NULL THEN
        RETURN false;
    END IF;
    SELECT format_type(a.atttypid, NULL) INTO id_type FROM pg_attribute a
        WHERE a.attrelid = to_regclass(format('%I.%I', coalesce(list ->> 'schema', space), list ->> 'members'))
          AND a.attname = list ->> 'id' AND NOT a.attisdropped;
    -- As text, too: 042 is not the group 42.
    EXECUTE format('SELECT EXISTS (SELECT FROM %s AND m.%2$I = $1::%3$s AND m.%2$I::text = $1)',
                   memberships, list ->> 'id', id_type)
        INTO is_found USING id;
    RETURN is_found;
EXCEPTION
    -- The text is no value of the column's type.
    WHEN data_exception THEN RETURN false;
    WHEN syntax_error_or_access_rule_violation THEN RETURN NULL;
END
$$;

-- The result of an item for a group of which the user is no member, or nothing is known.
CREATE FUNCTION {schema}.not_a_member(is_member boolean) RETURNS {schema}.upload_outcome
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN is_member IS NULL THEN ROW('retry', 'SYNC_ERROR', 'the memberships of the group cannot be read',
            NULL, NULL, NULL, NULL, NULL)::{schema}.upload_outcome
        ELSE ROW('rejected', 'FORBIDDEN', 'you are no member of this group',
            NULL, NULL, NULL, NULL, NULL)::{schema}.upload_outcome
    END
$$;

-- Moves the mark of a member to a message, if it is not beyond it; whether it moved.
CREATE FUNCTION {schema}.mark_read(member uuid, message {schema}.messages) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.message_reads AS r (user_id, group_name, group_id, number)
        VALUES (member, message.group_name, message.group_id, message.number)
        ON CONFLICT (user_id, group_name, group_id) DO UPDATE SET number = excluded.number, read_at = now()
        WHERE r.number < excluded.number;
    RETURN FOUND;
END
$$;

-- How many messages the user has not read in each of the user's groups that has one, without the user's own; at most 1,000 are
-- counted of a group. `groups` has the `list` of each kind.
CREATE FUNCTION {schema}.unread_in_groups(member uuid, space text, groups jsonb)
RETURNS TABLE (group_name text, group_id text, unread_count bigint)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    kind text;
    list jsonb;
BEGIN
    FOR kind, list IN SELECT g.key, g.value FROM jsonb_each(groups) g ORDER BY g.key LOOP
        CONTINUE WHEN {schema}.memberships(space, list) IS NULL;
        RETURN QUERY EXECUTE format(
            'SELECT $2, l.id, u.count FROM (SELECT DISTINCT m.%I::text AS id FROM %s) l '
            'LEFT JOIN {schema}.message_reads r ON r.user_id = $1 AND r.group_name = $2 AND r.group_id = l.id '
            'CROSS JOIN LATERAL (SELECT count(*) FROM (SELECT FROM {schema}.messages g '
            'WHERE g.group_id = l.id AND g.group_name = $2 AND g.number > coalesce(r.number, 0) '
            'AND g.sender_id <> $1 AND g.deleted_at IS NULL LIMIT 1000) counted) u '
            'WHERE u.count > 0 ORDER BY l.id LIMIT 1000',
            list ->> 'id', {schema}.memberships(space, list)
        ) USING member, kind;
    END LOOP;
END
$$;

-- The function is that of 0008_upload_once.up.sql; a message that moves to another group or recipient is changed, too.
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
    IF NEW.version = OLD.version AND (NEW.sender_id, NEW.recipient_id, NEW.group_name, NEW.group_id, NEW.content, NEW.deleted_at)
        IS DISTINCT FROM (OLD.sender_id, OLD.recipient_id, OLD.group_name, OLD.group_id, OLD.content, OLD.deleted_at)
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
    RETURN CASE WHEN message.group_id IS NULL THEN jsonb_build_object('recipient_id', message.recipient_id)
                ELSE jsonb_build_object(
                    'group', jsonb_build_object('name', message.group_name, 'id', message.group_id),
                    'number', message.number
                ) END
    || jsonb_build_object(
        'id', message.id,
        'sender_id', message.sender_id,
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

-- Sends a message of a web user to a group, if the user is a member: the message, or nothing.
CREATE FUNCTION {schema}.send_to_group(author uuid, space text, list jsonb, name text, id text, content text)
RETURNS SETOF {schema}.messages
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    -- Before the statement that checks: it waits for other messages to the group.
    PERFORM {schema}.lock_group(name, id);
    RETURN QUERY INSERT INTO {schema}.messages AS m (sender_id, group_name, group_id, content)
        SELECT author, name, id, content WHERE {schema}.is_member(space, list, id)
        RETURNING m.*;
END
$$;

-- The functions are those of 0018_unseen_versions.up.sql, 0019_rows_of_results.up.sql and 0003_conflicts.up.sql, which say what
-- they do, but for groups: `groups` has the `list` of each kind (see memberships()), and `group` of an item the one to which a
-- new message goes. Only a member sends, edits and reads; the sender deletes. Nodes of the version before pass no `groups`.
DROP FUNCTION {schema}.upload_message;
CREATE FUNCTION {schema}.upload_message(
    author uuid, author_type text, device text, strategy text,
    id uuid, op text, recipient uuid, content text, base bigint, needs_base boolean, written_at timestamptz,
    of_group jsonb, space text, groups jsonb
) RETURNS {schema}.upload_outcome
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    outcome {schema}.upload_outcome;
    recipient_type text;
    current {schema}.messages;
    is_member boolean;
    wanted jsonb;
    is_contested boolean;
BEGIN
    IF op = 'read' THEN
        SELECT m.* INTO current FROM {schema}.messages m WHERE m.id = id;
        IF current.group_id IS NOT NULL THEN
            -- The mark is a row of the member: the message stays as it is, and need not be locked.
            is_member := {schema}.is_member(space, groups -> current.group_name, current.group_id);
            IF is_member IS NOT TRUE THEN
                RETURN {schema}.not_a_member(is_member);
            ELSIF current.deleted_at IS NOT NULL THEN
                outcome := ROW('rejected', 'NOT_FOUND', NULL, NULL, NULL, NULL, NULL, NULL);
                RETURN outcome;
            END IF;
            outcome.status := CASE WHEN {schema}.mark_read(author, current) THEN 'applied' ELSE 'duplicate' END;
            outcome.version := current.version;
            outcome.revision := current.revision;
            RETURN outcome;
        END IF;
    END IF;
    SELECT m.* INTO current FROM {schema}.messages m WHERE m.id = id FOR UPDATE;

    IF current.id IS NULL AND op = 'create' THEN
        SELECT u.user_type INTO recipient_type FROM {schema}.users u
            WHERE u.id = recipient AND u.deleted_at IS NULL FOR KEY SHARE;
        IF of_group IS NOT NULL THEN
            NULL;
        ELSIF recipient_type IS NULL THEN
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
        -- Who may send to a group is checked by the statement that writes.
        INSERT INTO {schema}.messages AS m
            (id, sender_id, recipient_id, group_name, group_id, content, status, created_at, synced_at, device_id)
        SELECT
            id, author, recipient, of_group ->> 'name', of_group ->> 'id', content,
            CASE WHEN recipient_type = 'web' THEN 'synced' ELSE 'pending_sync' END,
            least(written_at, now()),
            CASE WHEN recipient_type = 'web' THEN now() END,
            device
        WHERE of_group IS NULL OR {schema}.is_member(space, groups -> (of_group ->> 'name'), of_group ->> 'id')
        ON CONFLICT ON CONSTRAINT messages_pkey DO NOTHING
        RETURNING m.version, m.revision INTO outcome.version, outcome.revision;
        IF FOUND THEN
            outcome.status := 'applied';
            RETURN outcome;
        END IF;
        -- Another upload inserted it meanwhile; below it is a row like any other.
        SELECT m.* INTO current FROM {schema}.messages m WHERE m.id = id FOR UPDATE;
        IF current.id IS NULL AND of_group IS NOT NULL THEN
            RETURN {schema}.not_a_member({schema}.is_member(space, groups -> (of_group ->> 'name'), of_group ->> 'id'));
        END IF;
    END IF;

    outcome.version := current.version;
    outcome.revision := current.revision;
    IF current.id IS NULL THEN
        outcome.status := 'rejected';
        outcome.code := 'NOT_FOUND';
    ELSIF op = 'read' THEN
        IF current.recipient_id IS DISTINCT FROM author THEN
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
        OR (current.content, current.recipient_id, current.group_name, current.group_id)
            IS NOT DISTINCT FROM (content, recipient, of_group ->> 'name', of_group ->> 'id')
    ) THEN
        outcome.status := 'duplicate';
        outcome.version := 1;
    ELSIF op = 'create' AND (current.recipient_id, current.group_name, current.group_id)
        IS DISTINCT FROM (recipient, of_group ->> 'name', of_group ->> 'id')
    THEN
        -- Another message with the same id: no version of this one.
        outcome := ROW('rejected', 'CONFLICT', NULL, NULL, NULL, NULL, NULL, NULL);
    ELSIF op = 'delete' AND current.deleted_at IS NOT NULL THEN
        outcome.status := 'duplicate';
    ELSIF current.deleted_at IS NOT NULL THEN
        outcome := ROW('rejected', 'NOT_FOUND', NULL, NULL, NULL, NULL, NULL, NULL);
    ELSIF op = 'edit' AND current.content = content THEN
        outcome.status := 'duplicate';
    ELSIF op <> 'delete' AND current.group_id IS NOT NULL
        AND {schema}.is_member(space, groups -> current.group_name, current.group_id) IS NOT TRUE
    THEN
        RETURN {schema}.not_a_member({schema}.is_member(space, groups -> current.group_name, current.group_id));
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
    items jsonb, first_seq bigint, acked bigint, digests bytea[], groups jsonb DEFAULT '{}'
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

    -- Messages that others change at the same time are locked at once in one order, so that two uploads cannot deadlock, and
    -- so are the groups that get messages.
    PERFORM {schema}.lock_group(g.name, g.id) FROM (
        SELECT DISTINCT e #>> '{group,name}' AS name, e #>> '{group,id}' AS id
        FROM jsonb_array_elements(items) WITH ORDINALITY AS list (e, n)
        WHERE n > known AND jsonb_typeof(e -> 'group') = 'object' AND NOT e ? 'table'
        ORDER BY 1, 2
    ) g;
    PERFORM FROM {schema}.messages m
        WHERE m.id IN (SELECT (e ->> 'id')::uuid FROM jsonb_array_elements(items) WITH ORDINALITY AS list (e, n)
                       WHERE n > known AND NOT e ? 'refused' AND NOT e ? 'table')
          -- A receipt in a group changes a row of the reader only.
          AND (m.group_id IS NULL OR m.id IN (
              SELECT (e ->> 'id')::uuid FROM jsonb_array_elements(items) e
              WHERE e ->> 'op' <> 'read' AND NOT e ? 'refused' AND NOT e ? 'table'
          ))
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
                    (entry ->> 'written_at')::timestamptz,
                    nullif(entry -> 'group', 'null'), space, groups);
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
CREATE FUNCTION {schema}.resolve_conflict(author uuid, conflict uuid, wanted text, merged text, base bigint,
    space text DEFAULT NULL, groups jsonb DEFAULT '{}'
)
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
    IF message.group_id IS NOT NULL AND (wanted = 'merged' OR wanted = 'client' AND found.client_version ->> 'op' <> 'delete')
        AND {schema}.is_member(space, groups -> message.group_name, message.group_id) IS NOT TRUE
    THEN
        RETURN QUERY SELECT 'left', NULL::bigint;
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
