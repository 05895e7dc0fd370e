//! What breaks a rule of the house today. A list of debts may only become shorter; the others say why they stay.

/// Debt: imports against the arrows (from, to).
pub(super) const ARROWS: &[(&str, &str)] = &[];

/// Debt: the sizes of the circles of imports, outside `api` and `http`.
pub(super) const CIRCLES: &[usize] = &[];

/// Debt: folders of `src` and other files in which banned phrases and names stand.
pub(super) const WORDS: &[&str] = &[];

/// Debt.
pub(super) const WIDE_MARKDOWN: &[&str] = &[];

/// Debt.
pub(super) const LONG_FILES: &[&str] = &[];

/// Debt: folders with tests whose names are too long.
pub(super) const LONG_TEST_NAMES: &[&str] = &[];

/// The number of sleeps in each file of tests: faults, models and retries that need a pause, and support's own polling.
pub(super) const SLEEPS: &[(&str, usize)] = &[
    ("tests/faults.rs", 16),
    ("tests/faults/truth.rs", 1),
    ("tests/faults/writers.rs", 1),
    ("tests/freshness.rs", 1),
    ("tests/group_model/case.rs", 1),
    ("tests/group_model/oracle.rs", 3),
    ("tests/group_model/page.rs", 1),
    ("tests/group_model/stage.rs", 1),
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
pub(super) const ENTRY_FIELDS: &[&str] = &[];

/// Files in which the same names are keys of an upload's item, which is JSON of a client.
pub(super) const UPLOADS: &[&str] = &[
    "src/sync/outgoing/form.rs",
    "src/sync/outgoing/messages.rs",
    "src/sync/outgoing/rows.rs",
];

/// Clients of other servers.
pub(super) const STATUS_CODES: &[&str] = &["src/cli/demo/api.rs", "src/net/webhook.rs"];

/// Debt: files that open connections to Redis.
pub(super) const REDIS_CONNECTIONS: &[&str] =
    &["src/accounts/sessions/mod.rs", "src/admin/tail.rs", "src/live/tail.rs"];

/// `doctor` examines the server as a client that has nothing else, and `dev` starts its own.
pub(super) const REDIS_BY_ITSELF: &[&str] = &["src/admin/doctor/redis.rs", "src/dev/redis.rs"];
