-- A write that creates a key, repeated after its response was lost, can arrive after the device itself has deleted the
-- key: the first of two requests may be the slower one. It was applied then, and brought back what was deleted. Now it is
-- `stale`, as after a deletion by another device. A device that means to create the same bytes with the same nonce once
-- more bases them on the version of the deletion.
--
-- The function is that of 0006_state.up.sql, which says what it does, but for that condition.
CREATE OR REPLACE FUNCTION {schema}.write_states(
    author uuid, device text, keys text[], states bytea[], nonces bytea[], bases text[], keys_max bigint
) RETURNS TABLE (
    outcome text, version bigint, is_deleted boolean, device_id text, created_at timestamptz, updated_at timestamptz
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    floor_version bigint;
    moment timestamptz;
    base bigint[];
    known {schema}.encrypted_states;
    made_by bytea;
    outcomes text[] := '{}';
    deletes boolean;
    is_there boolean;
    is_repeat boolean;
    has_failed boolean := false;
    grows bigint := 0;
    has_deleted boolean := false;
BEGIN
    -- A user's writes take turns, and a transaction that ends the user waits for this one or goes before it.
    SELECT u.state_floor INTO floor_version FROM {schema}.users u
        WHERE u.id = author AND u.deleted_at IS NULL AND u.disabled_at IS NULL
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'inactive';
        RETURN NEXT;
        RETURN;
    END IF;
    IF device IS NOT NULL AND NOT EXISTS (
        SELECT FROM {schema}.devices d WHERE d.device_id = device AND d.user_id = author AND d.revoked_at IS NULL
    ) THEN
        outcome := 'revoked';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Not the transaction's beginning, which may lie before that of a write for which this one waited.
    moment := clock_timestamp();

    FOR n IN 1 .. cardinality(keys) LOOP
        base := bases[n]::bigint[];
        deletes := states[n] IS NULL;
        -- The lock is against others than this function: psql, say.
        SELECT s.* INTO known FROM {schema}.encrypted_states s WHERE s.user_id = author AND s.key = keys[n] FOR UPDATE;
        is_there := known.id IS NOT NULL AND known.deleted_at IS NULL;
        -- Based on the version before the current one, to the same effect, by the same device.
        is_repeat := known.id IS NOT NULL AND deletes = (known.deleted_at IS NOT NULL)
            AND known.device_id IS NOT DISTINCT FROM device
            AND (deletes OR (known.state, known.nonce) = (states[n], nonces[n]))
            AND (base IS NULL OR known.version - 1 = ANY (base) OR (base = '{0}' AND NOT deletes));
        made_by := sha256(convert_to(coalesce(device, ''), 'UTF8') || states[n] || nonces[n]);
        outcomes[n] := CASE
            WHEN is_repeat THEN 'duplicate'
            WHEN NOT is_there AND deletes THEN 'absent'
            WHEN known.version = ANY (base) OR (base IS NULL AND is_there) THEN 'applied'
            WHEN base = '{0}' AND NOT is_there AND known.creation IS DISTINCT FROM made_by THEN 'applied'
            ELSE 'stale'
        END;
        IF outcomes[n] = 'applied' THEN
            grows := grows + (NOT is_there)::integer - deletes::integer;
            has_deleted := has_deleted OR deletes;
        END IF;
        has_failed := has_failed OR outcomes[n] IN ('absent', 'stale');
    END LOOP;
    IF NOT has_failed AND grows > 0 AND grows > keys_max - (
        SELECT count(*) FROM {schema}.encrypted_states s WHERE s.user_id = author AND s.deleted_at IS NULL
    ) THEN
        has_failed := true;
        FOR n IN 1 .. cardinality(keys) LOOP
            IF outcomes[n] = 'applied' THEN
                outcomes[n] := 'full';
            END IF;
        END LOOP;
    END IF;

    FOR n IN 1 .. cardinality(keys) LOOP
        IF outcomes[n] <> 'applied' OR has_failed THEN
            SELECT s.* INTO known FROM {schema}.encrypted_states s WHERE s.user_id = author AND s.key = keys[n];
        ELSIF states[n] IS NULL THEN
            UPDATE {schema}.encrypted_states s
                SET state = '', nonce = '', version = s.version + 1, device_id = device, updated_at = moment,
                    deleted_at = moment
                WHERE s.user_id = author AND s.key = keys[n]
                RETURNING s.* INTO known;
        ELSE
            INSERT INTO {schema}.encrypted_states AS s
                (user_id, key, state, nonce, version, device_id, created_at, updated_at, creation)
            VALUES (
                author, keys[n], states[n], nonces[n], floor_version + 1, device, moment, moment,
                sha256(convert_to(coalesce(device, ''), 'UTF8') || states[n] || nonces[n])
            )
            ON CONFLICT (user_id, key) DO UPDATE
                SET state = EXCLUDED.state, nonce = EXCLUDED.nonce, version = s.version + 1,
                    device_id = EXCLUDED.device_id, updated_at = EXCLUDED.updated_at, deleted_at = NULL,
                    created_at = CASE WHEN s.deleted_at IS NULL THEN s.created_at ELSE EXCLUDED.created_at END,
                    creation = CASE WHEN s.deleted_at IS NULL THEN s.creation ELSE EXCLUDED.creation END
                -- What came here past this function and was not there above.
                WHERE bases[n] IS DISTINCT FROM '{0}' OR s.deleted_at IS NOT NULL
            RETURNING s.* INTO known;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'another client has created the key just now' USING ERRCODE = 'serialization_failure';
            END IF;
        END IF;
        outcome := outcomes[n];
        version := known.version;
        is_deleted := known.id IS NULL OR known.deleted_at IS NOT NULL;
        device_id := known.device_id;
        created_at := known.created_at;
        updated_at := known.updated_at;
        RETURN NEXT;
    END LOOP;

    IF has_deleted AND NOT has_failed THEN
        WITH removed AS (
            DELETE FROM {schema}.encrypted_states s
            USING (
                SELECT o.id FROM {schema}.encrypted_states o WHERE o.user_id = author AND o.deleted_at IS NOT NULL
                ORDER BY o.deleted_at DESC, o.id OFFSET keys_max
            ) old
            WHERE s.id = old.id
            RETURNING s.version
        )
        UPDATE {schema}.users u SET state_floor = greatest(u.state_floor, (SELECT max(r.version) FROM removed r))
            WHERE u.id = author AND EXISTS (SELECT FROM removed);
    END IF;
END
$$;
