CREATE OR REPLACE FUNCTION {schema}.upload_row(
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
