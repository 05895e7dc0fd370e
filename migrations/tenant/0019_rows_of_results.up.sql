-- Results are about rows as they are now, where the device cannot know them:
--
-- - A result says whether it is a stored one, of an earlier request. What others have made of the row since then, the device
--   may know already; it must not store the effect of the item over it.
-- - An edit that was merged with changes of others has the winner `both`: the device gets the row, and has seen it then. An
--   item that stands on it without that (`base_seq`) has the base of the edit itself, so that a `delete`, or an edit without
--   `base_row`, does not overwrite what its user had not seen.
--
-- The functions are those of 0016_upload_results.up.sql and 0018_unseen_versions.up.sql, which say what they do, but for that.
DROP FUNCTION {schema}.upload_items(uuid, text, text, text, text, jsonb, bigint, bigint, bytea[]);
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

CREATE OR REPLACE FUNCTION {schema}.upload_row(
    author uuid, device text, space text, strategy text, entry jsonb, base bigint, needs_base boolean
) RETURNS {schema}.upload_outcome
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    outcome {schema}.upload_outcome;
    relation regclass := to_regclass(format('%I.%I', coalesce(entry ->> 'schema', space), entry ->> 'table'));
    op text := entry ->> 'op';
    id text := entry ->> 'id';
    owner text := entry ->> 'owner';
    authors text[] := CASE WHEN entry ? 'authors' THEN ARRAY(SELECT jsonb_array_elements_text(entry -> 'authors'))
                           ELSE ARRAY[author::text] END;
    tenant_column text := entry #>> '{tenant,column}';
    tenant_value text := entry #>> '{tenant,value}';
    -- The conditions under which the row `t` is the tenant's, under which it is the author's to write, and under which the
    -- groups are the author's that the item puts it into.
    within text := coalesce('t.' || quote_ident(tenant_column) || '::text = ' || quote_literal(tenant_value), 'true');
    mine text;
    allowed text;
    is_within boolean;
    is_allowed boolean;
    is_made boolean;
    shown jsonb;
    given jsonb;
    seen jsonb;
    keys text[];
    id_type text;
    is_versioned boolean;
    is_soft boolean;
    current jsonb;
    wanted jsonb;
    is_own boolean;
    is_deleted boolean;
    is_same boolean;
    is_merge boolean;
    is_mergeable boolean;
    is_behind boolean;
    returned text;
    state text;
BEGIN
    SELECT format_type(a.atttypid, a.atttypmod), a.attidentity = 'a' OR a.attgenerated <> ''
        INTO id_type, is_made FROM pg_attribute a
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
           coalesce(array_agg(c.key) FILTER (WHERE c.part = 'row'), '{}')
        INTO given, seen, keys
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
            SELECT list.g ->> 'column' AS of_row, format(
                       'EXISTS (SELECT FROM %1$I.%2$I m WHERE m.%3$I%8$s = t.%4$I%8$s AND m.%5$I::text = ANY (%6$L::text[])%7$s)',
                       list.space, list.g ->> 'members', list.g ->> 'id', list.g ->> 'column', list.g ->> 'user', list.authors,
                       concat(
                           CASE WHEN EXISTS (
                               SELECT FROM pg_attribute a
                               WHERE a.attrelid = list.members AND a.attname = 'deleted_at' AND NOT a.attisdropped
                           ) THEN ' AND m.deleted_at IS NULL' END,
                           ' AND m.' || quote_ident(list.g #>> '{tenant,column}') || '::text = '
                               || quote_literal(list.g #>> '{tenant,value}')
                       ),
                       -- A plain comparison can use an index.
                       CASE WHEN (SELECT count(DISTINCT a.atttypid) FROM pg_attribute a
                                  WHERE (a.attrelid, a.attname) IN ((list.members, list.g ->> 'id'), (relation, list.g ->> 'column'))) = 1
                       THEN '' ELSE '::text' END
                   ) AS is_member
            FROM (
                SELECT e AS g, coalesce(e ->> 'schema', space) AS space,
                       to_regclass(format('%I.%I', coalesce(e ->> 'schema', space), e ->> 'members')) AS members,
                       CASE WHEN e ? 'authors' THEN ARRAY(SELECT jsonb_array_elements_text(e -> 'authors'))
                            ELSE ARRAY[author::text] END AS authors
                FROM jsonb_array_elements(coalesce(entry -> 'by', '[]')) e
            ) list
        ) c;
    mine := concat_ws(' OR ', 't.' || quote_ident(owner) || format('::text = ANY (%L::text[])', authors), mine);
    -- Without an owner, a new row must be of a group.
    allowed := concat_ws(' AND ', CASE WHEN owner IS NULL AND op = 'create' THEN format('(%s)', mine) END, allowed);
    allowed := coalesce(nullif(allowed, ''), 'true');

    -- Who may write stands in the condition: of an id that is not unique, only the author's own row is read and written.
    EXECUTE format('SELECT to_jsonb(t), %1$s FROM %2$s t WHERE t.id = $1::%3$s AND %4$s '
                   'ORDER BY (%1$s) DESC NULLS LAST LIMIT 1 FOR UPDATE', mine, relation, id_type, within)
        INTO current, is_own USING id;
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
    is_merge := op = 'edit' AND coalesce((entry ->> 'merge')::boolean, false)
        AND NOT coalesce((entry ->> 'force')::boolean, false)
        AND NOT EXISTS (SELECT FROM unnest(keys) k WHERE NOT coalesce(entry -> 'base_row' ? k, false));
    is_mergeable := is_merge
        AND NOT EXISTS (SELECT FROM unnest(keys) k WHERE current -> k IS DISTINCT FROM seen -> k);
    is_behind := base < outcome.version;

    IF base IS NOT NULL AND NOT is_versioned THEN
        outcome.status := 'rejected';
        outcome.code := 'VALIDATION_ERROR';
        outcome.message := 'base_version: the table has no column version that the server counts';
    ELSIF current IS NULL AND op = 'create' AND is_made THEN
        outcome.status := 'rejected';
        outcome.code := 'VALIDATION_ERROR';
        outcome.message := 'id: only Postgres makes the ids of this table (GENERATED ALWAYS), so devices cannot create its rows';
    ELSIF current IS NULL AND op = 'create' AND owner IS NOT NULL AND cardinality(authors) = 0 THEN
        outcome.status := 'rejected';
        outcome.code := 'FORBIDDEN';
        outcome.message := 'the table names users by subjects of a provider, which has not identified this user';
    ELSIF current IS NULL AND op = 'create' THEN
        IF owner IS NOT NULL THEN
            -- A column of UUIDs holds ids, whatever other values name the author.
            given := given || jsonb_build_object(owner, CASE
                WHEN author::text = ANY (authors) AND EXISTS (
                    SELECT FROM pg_attribute a
                    WHERE a.attrelid = relation AND a.attname = owner AND a.atttypid = 'uuid'::regtype
                ) THEN author::text ELSE authors[1] END);
        END IF;
        IF tenant_column IS NOT NULL THEN
            given := given || jsonb_build_object(tenant_column, tenant_value);
        END IF;
        EXECUTE format('INSERT INTO %1$s AS t (id%2$s) SELECT $1::%3$s%4$s '
                       'FROM jsonb_populate_record(NULL::%1$s, $2) r RETURNING %5$s, %6$s, %7$s',
                       relation,
                       (SELECT string_agg(format(', %I', k), '' ORDER BY k) FROM jsonb_object_keys(given) k), id_type,
                       (SELECT string_agg(format(', r.%I', k), '' ORDER BY k) FROM jsonb_object_keys(given) k),
                       returned, allowed, within)
            INTO outcome.version, is_allowed, is_within USING id, given;
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
        outcome.version := CASE
            WHEN NOT is_versioned THEN NULL
            WHEN op = 'create' THEN 1
            WHEN needs_base OR entry ->> 'base_seq' IS NOT NULL THEN least(base, outcome.version)
            ELSE outcome.version
        END;
    ELSIF needs_base AND is_versioned AND op <> 'create' AND base IS NULL THEN
        outcome.status := 'rejected';
        outcome.code := 'VALIDATION_ERROR';
        outcome.message := 'base_version or base_seq is required, or force: true to overwrite any version';
    ELSIF op = 'create' OR (is_merge OR base < outcome.version) AND NOT is_mergeable THEN
        outcome.status := 'conflict';
        outcome.code := 'CONFLICT';
        outcome.winner := 'theirs';
        -- A repeat without a sequence number finds its conflict recorded and still open.
        SELECT c.id INTO outcome.conflict_id FROM {schema}.message_conflicts c
            WHERE c.user_id = author AND c.resolved_at IS NULL AND c.table_name = entry ->> 'table' AND c.row_id = id
              AND c.device_id = device AND c.base_version = coalesce(base, 0)
              AND c.client_version = jsonb_build_object('op', op, 'row', entry -> 'row');
        IF NOT FOUND THEN
            shown := CASE WHEN jsonb_typeof(entry -> 'visible') = 'array' THEN (
                SELECT jsonb_object_agg(v.key, v.value) FROM jsonb_each(current) v
                WHERE v.key = 'id' OR entry -> 'visible' ? v.key
            ) ELSE current END;
            INSERT INTO {schema}.message_conflicts AS c
                (table_name, row_id, user_id, device_id, base_version, client_version, server_version, strategy)
            VALUES (
                entry ->> 'table', id, author, device, coalesce(base, 0),
                jsonb_build_object('op', op, 'row', entry -> 'row'), shown, 'manual'
            ) RETURNING c.id INTO outcome.conflict_id;
        END IF;
    ELSIF op = 'delete' AND NOT is_soft THEN
        EXECUTE format('DELETE FROM %s t WHERE t.id = $1::%s AND (%s) AND %s', relation, id_type, mine, within) USING id;
        outcome.status := 'applied';
        outcome.version := NULL;
    ELSE
        EXECUTE format('UPDATE %1$s t SET %2$s%3$s FROM jsonb_populate_record(NULL::%1$s, $2) r '
                       'WHERE t.id = $1::%4$s AND (%6$s) AND %8$s RETURNING %5$s, %7$s, %8$s',
                       relation,
                       CASE WHEN op = 'delete' THEN 'deleted_at = now()'
                            ELSE (SELECT string_agg(format('%1$I = r.%1$I', k), ', ') FROM unnest(keys) k) END,
                       CASE WHEN is_versioned THEN ', version = t.version + 1' END,
                       id_type, returned, mine, allowed, within)
            INTO outcome.version, is_allowed, is_within USING id, given;
        outcome.status := 'applied';
        IF is_merge AND is_behind THEN
            outcome.winner := 'both';
        END IF;
    END IF;
    IF NOT coalesce(is_within, true) THEN
        RAISE EXCEPTION USING ERRCODE = 'PF001', MESSAGE = 'the row would be another tenant''s';
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
