-- The function of 0016_upload_results.up.sql.
DROP FUNCTION {schema}.upload_items(uuid, text, text, text, text, jsonb, bigint, bigint, bytea[]);
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
            target := coalesce(entry ->> 'table', 'messages');
            results[item] := CASE outcome.status
                WHEN 'applied' THEN jsonb_build_object('status', 'applied', 'version', outcome.version,
                    'revision', outcome.revision, 'table', target, 'id', entry ->> 'id')
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
