-- Uploads into the operator's own tables: a whole batch in one statement, a result for each item.
--
-- Each element of `items` has `table`, `owner` (the column that names whose row it is), `op`, `id` as text, `row` (only
-- columns that may be written), `columns` (all of those) and `base`, the version that the device saw, or null. Which
-- tables and columns are open the caller has checked; `space` is the tenant's schema.
--
--   create  A new id is inserted, with the author as its owner. A known one of the author's is a duplicate when it says
--           the same, is deleted, or has a version above 1; else a conflict.
--   edit    By the owner. What is there already is a duplicate.
--   delete  By the owner; soft where the table has `deleted_at`. What has gone already is a duplicate.
--
-- A column `version` that is not the device's to write grows with each change, and an older base is a conflict: the row
-- stays. Whatever Postgres itself has against an item is that item's result: each runs in a transaction of its own.
CREATE FUNCTION {schema}.upload_rows(author uuid, space text, items jsonb)
RETURNS TABLE (item integer, status text, code text, message text, version bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    entry jsonb;
    relation regclass;
    op text;
    id text;
    owner text;
    given jsonb;
    base bigint;
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
    returned text;
    state text;
BEGIN
    -- Batches of one user take turns, as in upload_messages().
    PERFORM pg_advisory_xact_lock(hashtextextended(author::text, 0));

    FOR item, entry IN SELECT n, e FROM jsonb_array_elements(items) WITH ORDINALITY AS list (e, n) ORDER BY n LOOP
        status := NULL;
        code := NULL;
        message := NULL;
        version := NULL;
        op := entry ->> 'op';
        id := entry ->> 'id';
        owner := entry ->> 'owner';
        base := (entry ->> 'base')::bigint;
        BEGIN
            relation := to_regclass(format('%I.%I', space, entry ->> 'table'));
            SELECT format_type(a.atttypid, a.atttypmod) INTO id_type FROM pg_attribute a
                WHERE a.attrelid = relation AND a.attname = 'id' AND NOT a.attisdropped;
            IF id_type IS NULL THEN
                RAISE undefined_table USING MESSAGE =
                    format('the tenant has no table %I with a column id', entry ->> 'table');
            END IF;
            SELECT coalesce(bool_or(a.attname = 'version' AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
                                    AND NOT entry -> 'columns' ? 'version'), false),
                   coalesce(bool_or(a.attname = 'deleted_at'), false)
                INTO is_versioned, is_soft FROM pg_attribute a
                WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;

            -- As everywhere in the API, bytes are base64 in JSON; Postgres reads them as hex.
            SELECT coalesce(jsonb_object_agg(c.key, CASE
                       WHEN jsonb_typeof(c.value) = 'string' AND a.atttypid = 'bytea'::regtype
                       THEN to_jsonb('\x' || encode(decode(c.value #>> '{}', 'base64'), 'hex')) ELSE c.value END), '{}'),
                   coalesce(array_agg(c.key), '{}'),
                   string_agg(format('%I', c.key), ', ')
                INTO given, keys, named
                FROM jsonb_each(entry -> 'row') c
                LEFT JOIN pg_attribute a ON a.attrelid = relation AND a.attname = c.key AND NOT a.attisdropped;

            EXECUTE format('SELECT to_jsonb(t), t.%I::text = $2 FROM %s t WHERE t.id = $1::%s FOR UPDATE', owner, relation, id_type)
                INTO current, is_own USING id, author::text;
            is_deleted := is_soft AND current ->> 'deleted_at' IS NOT NULL;
            IF is_versioned THEN
                version := (current ->> 'version')::bigint;
            END IF;
            returned := CASE WHEN is_versioned THEN 't.version' ELSE 'NULL' END;
            -- Compared as Postgres prints them: the device may write the same value otherwise.
            EXECUTE format('SELECT to_jsonb(r) FROM jsonb_populate_record(NULL::%s, $1) r', relation)
                INTO wanted USING given;
            is_same := NOT EXISTS (SELECT FROM unnest(keys) k WHERE current -> k IS DISTINCT FROM wanted -> k);

            IF base IS NOT NULL AND NOT is_versioned THEN
                status := 'rejected';
                code := 'VALIDATION_ERROR';
                message := 'base_version: the table has no column version that the server counts';
            ELSIF current IS NULL AND op = 'create' THEN
                EXECUTE format('INSERT INTO %1$s AS t (id, %2$I%3$s) SELECT $1::%4$s, r.%2$I%5$s '
                               'FROM jsonb_populate_record(NULL::%1$s, $2) r RETURNING %6$s',
                               relation, owner, coalesce(', ' || named, ''), id_type,
                               (SELECT string_agg(format(', r.%I', k), '') FROM unnest(keys) k), returned)
                    INTO version USING id, given || jsonb_build_object(owner, author);
                status := 'applied';
            ELSIF current IS NULL THEN
                status := CASE WHEN op = 'delete' THEN 'duplicate' ELSE 'rejected' END;
                code := CASE WHEN op <> 'delete' THEN 'NOT_FOUND' END;
            ELSIF NOT coalesce(is_own, false) THEN
                status := 'rejected';
                code := 'FORBIDDEN';
                version := NULL;
            ELSIF is_deleted THEN
                status := CASE WHEN op = 'edit' THEN 'rejected' ELSE 'duplicate' END;
                code := CASE WHEN op = 'edit' THEN 'NOT_FOUND' END;
            ELSIF op <> 'delete' AND is_same OR op = 'create' AND is_versioned AND version > 1 THEN
                status := 'duplicate';
            ELSIF op = 'create' OR base < version THEN
                status := 'conflict';
                code := 'CONFLICT';
            ELSIF op = 'delete' AND NOT is_soft THEN
                EXECUTE format('DELETE FROM %s WHERE id = $1::%s', relation, id_type) USING id;
                status := 'applied';
                version := NULL;
            ELSE
                EXECUTE format('UPDATE %1$s t SET %2$s%3$s FROM jsonb_populate_record(NULL::%1$s, $2) r '
                               'WHERE t.id = $1::%4$s RETURNING %5$s',
                               relation,
                               CASE WHEN op = 'delete' THEN 'deleted_at = now()'
                                    ELSE (SELECT string_agg(format('%1$I = r.%1$I', k), ', ') FROM unnest(keys) k) END,
                               CASE WHEN is_versioned THEN ', version = t.version + 1' END,
                               id_type, returned)
                    INTO version USING id, given;
                status := 'applied';
            END IF;
        EXCEPTION
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
                message := SQLERRM;
                version := NULL;
                CASE
                    -- Data that does not fit, constraints, check options, and what triggers raise.
                    WHEN state ~ '^(22|23|44|P0001)' THEN
                        status := 'rejected';
                        code := CASE WHEN state = '23505' THEN 'CONFLICT' ELSE 'VALIDATION_ERROR' END;
                    -- Names and rights, deadlocks, locks: not the device's to mend, but the operator's, or time's.
                    WHEN state ~ '^(42|40|55)' THEN
                        status := 'retry';
                        code := 'SYNC_ERROR';
                    ELSE
                        RAISE;
                END CASE;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
