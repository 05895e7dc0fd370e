-- Encrypted state: versions that never repeat, and writes under conditions, a whole batch in one statement. Devices: when
-- their public keys changed.

-- Versions up to this one may have belonged to keys whose last traces are removed; see write_states().
ALTER TABLE {schema}.users ADD COLUMN state_floor bigint NOT NULL DEFAULT 0 CHECK (state_floor >= 0);

-- By what a key was made last: SHA-256 of device, state and nonce; a deleted key keeps it.
ALTER TABLE {schema}.encrypted_states ADD COLUMN creation bytea CHECK (octet_length(creation) = 32);

-- Whoever changes state, also by psql, makes a new version of it.
CREATE FUNCTION {schema}.states_new_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND (NEW.user_id, NEW.key, NEW.state, NEW.nonce, NEW.deleted_at)
        IS DISTINCT FROM (OLD.user_id, OLD.key, OLD.state, OLD.nonce, OLD.deleted_at)
    THEN
        NEW.version := OLD.version + 1;
        NEW.updated_at := now();
        -- Writes of devices count versions themselves; whoever comes here is none.
        NEW.device_id := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER states_new_version BEFORE UPDATE ON {schema}.encrypted_states
    FOR EACH ROW EXECUTE FUNCTION {schema}.states_new_version();

-- Writes states of a user, all of them or none. The arrays run in parallel, an element each item; the caller has checked
-- keys and sizes, and that no key comes twice. An item without `states` deletes its key. `bases` holds what the item
-- is made upon, each an array as text: versions, one of which must be the current one, which may be that of the deletion;
-- {0}, there must be no such key; null, there must be one, whatever its version.
--
-- One row an item, in their order, with the version that is current when this is done:
--
--   applied    it was done
--   duplicate  this device had done just that before, and nobody has changed the key since: the answer got lost
--   absent     a key to be deleted is not there
--   stale      the key is at another version, is there, or is not there; or it was made by just this item, and another
--              device has deleted it since
--   full       the user would have more than `keys_max` keys
--
-- With any of the last three, nothing is done. A single row `inactive` or `revoked` means that the user or the device
-- may not act.
--
-- A deleted key stays as a row without bytes, so that it goes on counting when it is made anew. Of these rows the newest
-- `keys_max` are kept; versions of new keys begin above those of the ones that are removed.
CREATE FUNCTION {schema}.write_states(
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
    -- A user's writes take turns, and whoever ends the user waits for this one or goes before it.
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
        -- Made upon the version before the current one, to the same effect, by the same device.
        is_repeat := known.id IS NOT NULL AND deletes = (known.deleted_at IS NOT NULL)
            AND known.device_id IS NOT DISTINCT FROM device
            AND (deletes OR (known.state, known.nonce) = (states[n], nonces[n]))
            AND (base IS NULL OR known.version - 1 = ANY (base) OR (base = '{0}' AND NOT deletes));
        made_by := sha256(convert_to(coalesce(device, ''), 'UTF8') || states[n] || nonces[n]);
        outcomes[n] := CASE
            WHEN is_repeat THEN 'duplicate'
            WHEN NOT is_there AND deletes THEN 'absent'
            WHEN known.version = ANY (base) OR (base IS NULL AND is_there) THEN 'applied'
            WHEN base = '{0}' AND NOT is_there AND NOT (
                coalesce(known.creation = made_by, false) AND known.device_id IS DISTINCT FROM device
            ) THEN 'applied'
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
                RAISE EXCEPTION 'the key was made by somebody else just now' USING ERRCODE = 'serialization_failure';
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

-- Whoever encrypts for a device sees whether its key is still the one that they have checked.
ALTER TABLE {schema}.devices ADD COLUMN public_key_changed_at timestamptz;
CREATE FUNCTION {schema}.devices_public_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.public_key_changed_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER devices_public_key_changed BEFORE UPDATE ON {schema}.devices
    FOR EACH ROW WHEN (OLD.public_key IS DISTINCT FROM NEW.public_key)
    EXECUTE FUNCTION {schema}.devices_public_key_changed();
