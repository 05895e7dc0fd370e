//! What breaks a rule of the house today. A list of debts may only become shorter; the others say why they stay.

/// Debt: imports against the arrows (from, to).
pub(super) const ARROWS: &[(&str, &str)] = &[
    ("accounts", "messages"),
    ("accounts", "net"),
    ("api", "decode"),
    ("api", "replication"),
    ("api", "route"),
    ("config", "net"),
    ("config", "push"),
    ("config", "route"),
    ("contract", "route"),
    ("http", "accounts"),
    ("http", "api"),
    ("http", "feature"),
    ("http", "postgres"),
    ("live", "postgres"),
    ("live", "push"),
    ("push", "replication"),
    ("telemetry", "net"),
    ("telemetry", "replication"),
    ("telemetry", "sync"),
];

/// Debt: the sizes of the circles of imports, outside `api` and `http`.
pub(super) const CIRCLES: &[usize] = &[44, 5];

/// Debt: folders of `src` and other files in which banned phrases and names stand.
pub(super) const WORDS: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.toml",
    "README.md",
    "config/config.yaml",
    "config/posduif.service",
    "docs/api.md",
    "docs/architecture.md",
    "docs/cli.md",
    "docs/clients.md",
    "docs/consumers.md",
    "docs/openapi.yaml",
    "docs/operations.md",
    "docs/own-tables.md",
    "docs/sync-protocol.md",
    "examples/consumer.sh",
    "examples/phone.rs",
    "sql/device_login.sql",
    "sql/enrollment_device.sql",
    "sql/full_identity_function.sql",
    "sql/last_seen_write.sql",
    "sql/slot_state.sql",
    "sql/state_write.sql",
    "sql/sync_metadata_write.sql",
    "sql/tenant_inboxes_anew.sql",
    "sql/tenant_rebirth.sql",
    "src/accounts",
    "src/admin",
    "src/api",
    "src/cli",
    "src/config",
    "src/contract",
    "src/core",
    "src/dev",
    "src/feature",
    "src/http",
    "src/live",
    "src/messages",
    "src/net",
    "src/postgres",
    "src/publish",
    "src/push",
    "src/redis",
    "src/replication",
    "src/route",
    "src/state",
    "src/sync",
    "src/telemetry",
    "tests/operators.rs",
    "tests/slots.rs",
    "tests/streams.rs",
    "tests/telemetry.rs",
];

/// Debt.
pub(super) const WIDE_MARKDOWN: &[&str] = &[
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/benchmarks.md",
    "docs/cli.md",
    "docs/clients.md",
    "docs/consumers.md",
    "docs/operations.md",
    "docs/own-tables.md",
    "docs/sync-protocol.md",
];

/// Debt.
pub(super) const LONG_FILES: &[&str] = &[
    "src/accounts/devices.rs",
    "src/admin/doctor/postgres.rs",
    "src/config/mod.rs",
    "src/replication/session.rs",
];

/// Debt: folders with tests whose names are too long.
pub(super) const LONG_TEST_NAMES: &[&str] = &[
    "src/accounts",
    "src/admin",
    "src/api",
    "src/contract",
    "src/dev",
    "src/http",
    "src/live",
    "src/publish",
    "src/push",
    "src/sync",
];

/// The number of sleeps in each file of tests: faults, models and retries that need a pause, and support's own polling.
pub(super) const SLEEPS: &[(&str, usize)] = &[
    ("tests/faults.rs", 16),
    ("tests/faults/truth.rs", 1),
    ("tests/faults/writers.rs", 1),
    ("tests/freshness.rs", 1),
    ("tests/handoff.rs", 1),
    ("tests/model.rs", 6),
    ("tests/push.rs", 2),
    ("tests/recovery.rs", 1),
    ("tests/support/mod.rs", 2),
    ("tests/support/servers.rs", 1),
    ("tests/sync.rs", 1),
    ("tests/websocket.rs", 1),
];

/// Debt: files that name the fields of entries.
pub(super) const ENTRY_FIELDS: &[&str] = &[
    "src/admin/quarantine.rs",
    "src/admin/streams.rs",
    "src/admin/tail.rs",
    "src/cli/stream/quarantine.rs",
    "src/publish/batch.rs",
    "src/push/candidates.rs",
    "src/replication/pipeline.rs",
    "src/replication/trim.rs",
];

/// Files in which the same names are keys of an upload's item, which is JSON of a client.
pub(super) const UPLOADS: &[&str] = &["src/sync/outgoing/mod.rs", "src/sync/outgoing/rows.rs"];

/// Clients of other servers.
pub(super) const STATUS_CODES: &[&str] = &["src/cli/demo/api.rs", "src/push/webhook.rs"];

/// Debt: files that open connections to Redis.
pub(super) const REDIS_CONNECTIONS: &[&str] = &["src/accounts/sessions.rs", "src/admin/tail.rs", "src/live/tail.rs"];

/// `doctor` examines the server as a client that has nothing else, and `dev` starts its own.
pub(super) const REDIS_BY_ITSELF: &[&str] = &["src/admin/doctor/redis.rs", "src/dev/redis.rs"];
