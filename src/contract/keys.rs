//! The names of all Redis keys (docs/redis.md). They never change; the part in braces is the Redis Cluster hash tag.

use uuid::Uuid;

use super::group::GroupId;

/// Makes key names under one prefix (`redis.prefix`).
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys under a prefix.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// Hash: how far publishing has come; written by the publisher's `EXEC` only.
    pub fn checkpoint(&self) -> String {
        format!("{}:checkpoint", self.prefix)
    }

    /// Hash: ended terms of publishers, see [`super::terms`].
    pub fn terms(&self) -> String {
        format!("{}:terms", self.prefix)
    }

    /// Hash: transactions that a snapshot may not see yet: first stream ID → transaction ids in runs, `7-9,12`.
    pub fn window(&self) -> String {
        format!("{}:window", self.prefix)
    }

    /// Hash: streams that took no entries and have a hole until they are recreated, each with the cause.
    pub fn stopped(&self) -> String {
        format!("{}:stopped", self.prefix)
    }

    /// Hash: tenants that use more than their budget, see [`super::budget`].
    pub fn exceeded(&self) -> String {
        format!("{}:exceeded", self.prefix)
    }

    /// Hash: `published`, an LSN. What is written there is only a mark behind which `WAITAOF` waits.
    pub fn aof(&self) -> String {
        format!("{}:aof", self.prefix)
    }

    /// Stream and hash: scratch keys on which `posduif doctor` tries what the server permits.
    pub fn probe(&self, random: &str) -> [String; 2] {
        ["stream", "mark"].map(|part| format!("{}:probe:{random}:{part}", self.prefix))
    }

    /// Stream: thin notices for API nodes, one stream a lane.
    pub fn live(&self, lane: u32) -> String {
        format!("{}:live:{lane}", self.prefix)
    }

    /// Stream: every row change of the tenant in commit order.
    pub fn changes(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:changes", self.prefix)
    }

    /// Stream: what every user of the tenant must see.
    pub fn shared(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:shared", self.prefix)
    }

    /// Stream: what one user must see.
    pub fn inbox(&self, tenant: &str, user: &str) -> String {
        self.inbox_parts(tenant, user).concat()
    }

    /// The parts of [`Keys::inbox`], for code that writes many.
    pub fn inbox_parts<'a>(&'a self, tenant: &'a str, user: &'a str) -> [&'a str; 5] {
        [&self.prefix, ":{", tenant, "}:inbox:", user]
    }

    /// Stream: what the members of one group must see.
    pub fn group(&self, tenant: &str, group: &GroupId) -> String {
        self.group_parts(tenant, group).concat()
    }

    /// The parts of [`Keys::group`], for code that writes many.
    pub fn group_parts<'a>(&'a self, tenant: &'a str, group: &'a GroupId) -> [&'a str; 7] {
        [&self.prefix, ":{", tenant, "}:group:", group.name(), ":", group.id()]
    }

    /// Set: the groups that have a stream.
    pub fn groups(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:groups", self.prefix)
    }

    /// Hash: the groups of one user, see [`super::members`].
    pub fn members(&self, tenant: &str, user: &str) -> String {
        format!("{}:{{{tenant}}}:groups:{user}", self.prefix)
    }

    /// Sorted set: the memberships that began and ended lately, see [`super::membership_log`].
    pub fn memberships(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:memberships", self.prefix)
    }

    /// Stream: what could not be routed or stored, with the cause.
    pub fn quarantine(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:quarantine", self.prefix)
    }

    /// Stream: which devices are offline and have something, for a gateway that pushes.
    pub fn push(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:push", self.prefix)
    }

    /// Hash: the tenant's `generation`, its `state` (`active` or `paused`), and `trim:<stream>` → the stream ID up to
    /// which entries were trimmed.
    pub fn meta(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:meta", self.prefix)
    }

    /// The keys of a tenant that do not name a user or a device of it: the next tenant of this name has the same ones.
    pub fn without_users(&self, tenant: &str) -> Vec<String> {
        let parts = ["users", "changed", "gone", "seen", "unwritten"];
        let presence = parts.map(|part| self.presence_part(tenant, part));
        let others = [
            self.changes(tenant),
            self.shared(tenant),
            self.groups(tenant),
            self.memberships(tenant),
            self.meta(tenant),
            self.quarantine(tenant),
            self.push(tenant),
            self.push_due(tenant),
            self.push_tries(tenant),
            self.presence(tenant),
        ];
        others.into_iter().chain(presence).collect()
    }

    /// Pattern of all keys of a tenant.
    pub fn of_tenant(&self, tenant: &str) -> String {
        // Characters with a meaning in patterns are escaped.
        let prefix: String = self
            .prefix
            .chars()
            .flat_map(|c| ['\\', c].into_iter().skip(usize::from(c.is_ascii_alphanumeric())))
            .collect();
        format!("{prefix}:{{{tenant}}}:*")
    }

    /// Hash: one device's sync state: what it acknowledged and was given.
    pub fn device(&self, tenant: &str, device_id: &str) -> String {
        format!("{}:{{{tenant}}}:device:{device_id}", self.prefix)
    }

    /// Sorted set: the tenant's open streams, `<user>/<device or session>/<stream>`, by the time (ms since 1970) at which
    /// each is over unless it is held again.
    pub fn presence(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:presence", self.prefix)
    }

    /// What is derived from [`Keys::presence`]: `users`, `changed`, `gone`, `seen` and `unwritten`.
    pub fn presence_part(&self, tenant: &str, part: &str) -> String {
        format!("{}:{{{tenant}}}:presence:{part}", self.prefix)
    }

    /// Text: some process has carried last seen times to Postgres; expires when it is the next one's turn.
    pub fn presence_carrier(&self) -> String {
        format!("{}:presence:carrier", self.prefix)
    }

    /// Sorted set: entries of [`Keys::push`] that the webhook has not accepted, by the time (ms since 1970) of the next try.
    pub fn push_due(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:push:due", self.prefix)
    }

    /// Hash: how many attempts the webhook has made for each of them.
    pub fn push_tries(&self, tenant: &str) -> String {
        format!("{}:{{{tenant}}}:push:tries", self.prefix)
    }

    /// Hash: one login's session. Session ids are random over all tenants, and each session names its tenant.
    pub fn session(&self, session: Uuid) -> String {
        format!("{}:session:{session}", self.prefix)
    }

    /// Sorted set: sessions that were ended, by the time (ms since 1970) from which no access token of them lives on.
    pub fn ended_sessions(&self) -> String {
        format!("{}:sessions:ended:until", self.prefix)
    }

    /// Set: ids of one user's sessions, some of which may have expired.
    pub fn account_sessions(&self, user: Uuid) -> String {
        format!("{}:account:{user}:sessions", self.prefix)
    }

    /// Pub/Sub channel: ids of sessions as they are ended.
    pub fn sessions_ended(&self) -> String {
        format!("{}:sessions:ended", self.prefix)
    }

    /// Text: the address of a proxy that is not in `server.trusted_proxies`, as a process has seen it.
    pub fn unlisted_proxy(&self) -> String {
        format!("{}:proxy:unlisted", self.prefix)
    }

    /// Text (JSON): who may open which stream by the ticket with this digest.
    pub fn ticket(&self, digest: &str) -> String {
        format!("{}:ticket:{digest}", self.prefix)
    }

    /// Number: how often something was counted against a limit within its window. `who` is a digest.
    pub fn limit(&self, limit: &str, who: &str) -> String {
        format!("{}:limit:{limit}:{who}", self.prefix)
    }
}
