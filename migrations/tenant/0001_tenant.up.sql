-- One tenant's tables. {schema} is replaced by the quoted schema name before this runs.
-- Every published table has REPLICA IDENTITY FULL: only then do an UPDATE and a DELETE carry the old recipient and
-- unchanged TOAST values (Postgres chapter 31.1).

CREATE TABLE {schema}.users (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    username      text NOT NULL CHECK (length(username) BETWEEN 1 AND 255),
    user_type     text NOT NULL CHECK (user_type IN ('web', 'mobile')),
    email         text CHECK (length(email) <= 255),
    last_seen     timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz,
    deleted_at    timestamptz
);
CREATE UNIQUE INDEX users_username ON {schema}.users (lower(username)) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_email ON {schema}.users (lower(email)) WHERE deleted_at IS NULL;
ALTER TABLE {schema}.users REPLICA IDENTITY FULL;

CREATE TABLE {schema}.devices (
    device_id    text PRIMARY KEY CHECK (length(device_id) BETWEEN 1 AND 128),
    user_id      uuid NOT NULL REFERENCES {schema}.users ON DELETE CASCADE,
    name         text CHECK (length(name) <= 255),
    device_type  text NOT NULL DEFAULT 'mobile' CHECK (device_type IN ('mobile', 'desktop', 'browser')),
    public_key   text CHECK (length(public_key) <= 16384),
    device_info  jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX devices_user ON {schema}.devices (user_id);
ALTER TABLE {schema}.devices REPLICA IDENTITY FULL;

CREATE TABLE {schema}.messages (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    sender_id    uuid NOT NULL REFERENCES {schema}.users,
    recipient_id uuid NOT NULL REFERENCES {schema}.users,
    content      text NOT NULL CHECK (content <> ''),
    status       text NOT NULL DEFAULT 'pending_sync' CHECK (status IN ('pending_sync', 'synced', 'read')),
    -- Grows with every change of what the message says (not with status and synced_at, the server's bookkeeping).
    version      bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    synced_at    timestamptz,
    read_at      timestamptz,
    deleted_at   timestamptz,
    -- The device whose upload wrote this version, null for the API and for other writers.
    device_id    text
);
-- Lists and snapshots page by (created_at, id).
CREATE INDEX messages_recipient ON {schema}.messages (recipient_id, created_at, id);
CREATE INDEX messages_sender ON {schema}.messages (sender_id, created_at, id);
CREATE INDEX messages_unread ON {schema}.messages (recipient_id) WHERE read_at IS NULL AND deleted_at IS NULL;
ALTER TABLE {schema}.messages REPLICA IDENTITY FULL;

-- Whoever changes a message, also by psql, makes a new version of it.
CREATE FUNCTION {schema}.messages_new_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND (NEW.sender_id, NEW.recipient_id, NEW.content, NEW.read_at, NEW.deleted_at)
        IS DISTINCT FROM (OLD.sender_id, OLD.recipient_id, OLD.content, OLD.read_at, OLD.deleted_at)
    THEN
        NEW.version := OLD.version + 1;
        IF NEW.updated_at = OLD.updated_at THEN
            NEW.updated_at := now();
        END IF;
        -- A device's upload counts versions itself; whoever comes here is none.
        NEW.device_id := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER messages_new_version BEFORE UPDATE ON {schema}.messages
    FOR EACH ROW EXECUTE FUNCTION {schema}.messages_new_version();

-- Both versions of a message that two sides changed.
CREATE TABLE {schema}.message_conflicts (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    message_id     uuid NOT NULL,
    user_id        uuid NOT NULL,
    device_id      text,
    base_version   bigint NOT NULL,
    -- Each version as the API shows a message; the device's also bears its `op`.
    client_version jsonb NOT NULL,
    server_version jsonb NOT NULL,
    strategy       text NOT NULL CHECK (strategy IN ('last_write_wins', 'manual')),
    resolution     text CHECK (resolution IN ('client', 'server', 'merged')),
    resolved_by    uuid,
    created_at     timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz,
    CHECK ((resolution IS NULL) = (resolved_at IS NULL))
);
CREATE INDEX message_conflicts_open ON {schema}.message_conflicts (user_id) WHERE resolved_at IS NULL;
ALTER TABLE {schema}.message_conflicts REPLICA IDENTITY FULL;

CREATE TABLE {schema}.enrollments (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_by uuid NOT NULL REFERENCES {schema}.users ON DELETE CASCADE,
    -- The user who gets the device; null means that completing makes a new mobile user.
    user_id    uuid REFERENCES {schema}.users ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz,
    device_id  text,
    CHECK ((used_at IS NULL) = (device_id IS NULL))
);
ALTER TABLE {schema}.enrollments REPLICA IDENTITY FULL;

-- What is known of each device's sync; written in bulk, some seconds behind.
CREATE TABLE {schema}.sync_metadata (
    device_id              text PRIMARY KEY REFERENCES {schema}.devices ON DELETE CASCADE,
    last_sync_timestamp    timestamptz,
    pending_outgoing_count integer NOT NULL DEFAULT 0 CHECK (pending_outgoing_count >= 0),
    sync_status            text NOT NULL DEFAULT 'idle' CHECK (sync_status IN ('idle', 'syncing', 'error')),
    last_error             text,
    updated_at             timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE {schema}.sync_metadata REPLICA IDENTITY FULL;

-- End-to-end encrypted state per user and key; the server sees opaque bytes only.
CREATE TABLE {schema}.encrypted_states (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    uuid NOT NULL REFERENCES {schema}.users ON DELETE CASCADE,
    key        text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    state      bytea NOT NULL,
    nonce      bytea NOT NULL,
    version    bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    -- The device that wrote this version.
    device_id  text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    UNIQUE (user_id, key)
);
ALTER TABLE {schema}.encrypted_states REPLICA IDENTITY FULL;
