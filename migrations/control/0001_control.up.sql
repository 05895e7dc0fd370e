-- The control schema: tenants, the device directory, epochs and every secret hash. It is never published, so no
-- stream can carry what is in here. (The schema itself and posduif.schema_migrations exist before any migration.)

CREATE TABLE posduif.tenants (
    name              text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,47}$'),
    schema_name       text NOT NULL UNIQUE CHECK (schema_name = 'tenant_' || name),
    -- active: delivers; paused: is published but not delivered.
    state             text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused')),
    registration_open boolean NOT NULL DEFAULT false,
    -- Counts resyncs of this tenant; cursors carry it.
    generation        bigint NOT NULL DEFAULT 1 CHECK (generation > 0),
    created_at        timestamptz NOT NULL DEFAULT now()
);

-- Password hashes (Argon2id, PHC string format).
CREATE TABLE posduif.credentials (
    tenant        text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    user_id       uuid NOT NULL,
    password_hash text NOT NULL,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, user_id)
);

-- The device directory: which tenant and user a device token speaks for.
CREATE TABLE posduif.devices (
    tenant        text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    device_id     text NOT NULL CHECK (length(device_id) BETWEEN 1 AND 128),
    user_id       uuid NOT NULL,
    -- SHA-256 of the 256 random bits that the device holds.
    token_hash    bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    issued_at     timestamptz NOT NULL DEFAULT now(),
    first_used_at timestamptz,
    revoked_at    timestamptz,
    PRIMARY KEY (tenant, device_id)
);
CREATE INDEX devices_user ON posduif.devices (tenant, user_id);

-- SHA-256 of enrollment tokens; the enrollment itself is a row of the tenant.
CREATE TABLE posduif.enrollment_tokens (
    token_hash    bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    tenant        text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    enrollment_id uuid NOT NULL
);

-- Every break in a slot's history. The id is random, so that an old cursor never fits a new epoch; the number only
-- counts; the base keeps Redis stream IDs growing when LSNs went backwards.
CREATE TABLE posduif.epochs (
    slot       text NOT NULL,
    number     bigint NOT NULL CHECK (number > 0),
    id         text NOT NULL CHECK (id ~ '^[0-9a-f]{16}$'),
    base       bigint NOT NULL DEFAULT 0 CHECK (base >= 0),
    system_id  text NOT NULL,
    timeline   integer NOT NULL,
    start_lsn  pg_lsn NOT NULL,
    reason     text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slot, number)
);
