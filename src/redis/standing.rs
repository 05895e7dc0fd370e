//! Where the streams of a user are, for snapshots and for readers that begin at the present; and the user's memberships, which
//! the publisher keeps from a mark on.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Pipeline;
use uuid::Uuid;

use super::read_position::ReadPosition;
use super::store::{Error, Fields, Store, Values, checkpoint_command, parse_view};
use crate::contract::checkpoint::{MEMBERSHIPS, View, memberships_since};
use crate::contract::group::GroupId;
use crate::contract::lua;
use crate::contract::members::{GROUPS_MAX, Members};
use crate::contract::membership_log::MembershipLog;
use crate::contract::meta::{self, Meta};
use crate::contract::window::WindowEntry;
use crate::core::position::StreamId;

/// Where the streams of a user are.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The checkpoint.
    pub view: View,
    /// The tenant's generation.
    pub generation: i64,
    /// Streams that must exist and do not.
    pub missing: Missing,
    /// Delivery is paused.
    pub is_paused: bool,
    /// The user's memberships; empty without groups.
    pub members: Arc<Members>,
    /// The memberships are not known, but must be.
    pub lacks_members: bool,
    /// Groups of the user whose stream does not exist.
    pub missing_groups: Vec<GroupId>,
    /// The last reset of the tenant's readers, after which memberships must be read again.
    pub groups_reset: StreamId,
}

/// What a snapshot needs before it is taken.
#[derive(Debug, Clone)]
pub struct Handoff {
    pub standing: Standing,
    /// Transactions that a snapshot may not see yet.
    pub window: Vec<WindowEntry>,
}

/// What is needed before memberships are read from Postgres.
#[derive(Debug, Clone)]
pub struct MembershipHandoff {
    pub handoff: Handoff,
    /// The latest changes of the tenant's memberships.
    pub log: MembershipLog,
    /// The transaction of [`Standing::groups_reset`], if it is known.
    pub reset_xid: Option<u32>,
}

impl Standing {
    /// The place behind everything that is published.
    pub fn place(&self) -> ReadPosition {
        ReadPosition {
            epoch: self.view.epoch,
            generation: self.generation,
            term: self.view.term,
            position: self.view.position,
            resets_covered: None,
            is_incomplete: false,
        }
    }
}

/// Which of a user's streams do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The tenant's shared stream or meta hash.
    pub tenant: bool,
    /// The user's inbox.
    pub inbox: bool,
    /// The user's memberships, or the stream of one of the groups.
    pub groups: bool,
}

impl Missing {
    /// Whether any is missing.
    pub fn any(self) -> bool {
        self.tenant || self.inbox || self.groups
    }

    /// Whether nothing but what groups need is missing.
    pub fn is_groups_only(self) -> bool {
        self.groups && !self.tenant && !self.inbox
    }
}

impl Store {
    /// Where the streams of a user are now.
    pub async fn standing(&self, tenant: &str, user: Uuid) -> Result<Standing, Error> {
        let replies: StandingReplies = self.query(&self.standing_commands(tenant, user)).await?;
        self.stand(tenant, replies).await
    }

    /// What a snapshot needs before it is taken.
    pub async fn handoff(&self, tenant: &str, user: Uuid) -> Result<Handoff, Error> {
        let mut pipe = self.standing_commands(tenant, user);
        pipe.cmd("HGETALL").arg(self.0.keys.window());
        type Replies = (bool, bool, Values, Values, Fields, Fields);
        let (inbox, shared, meta, checkpoint, members, window): Replies = self.query(&pipe).await?;
        let standing = self.stand(tenant, (inbox, shared, meta, checkpoint, members)).await?;
        Ok(Handoff {
            standing,
            window: WindowEntry::parse_all(&window),
        })
    }

    /// The memberships of these users, each by its place in the list; empty where they are not known now.
    pub async fn memberships(&self, tenant: &str, users: &[Uuid]) -> Result<Vec<Members>, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET")
            .arg(self.0.keys.meta(tenant))
            .arg(&[meta::GENERATION, meta::STATE, meta::GROUPS_RESET]);
        checkpoint_command(&mut pipe, &self.0.keys);
        let (meta, checkpoint): (Values, Values) = self.query(&pipe).await?;
        let (meta, view) = (Meta::parse(meta), parse_view(&checkpoint)?);
        let mut pipe = redis::pipe();
        for user in users {
            pipe.cmd("HGETALL").arg(self.0.keys.members(tenant, &user.to_string()));
        }
        let fields: Vec<Fields> = match users {
            [] => Vec::new(),
            _ => self.query(&pipe).await?,
        };
        let known = |fields: &Fields| {
            let members = Members::parse(fields);
            let is_known = members.is_of(view.epoch, meta.generation, meta.groups_reset) && members.since.is_some();
            if is_known { members } else { Members::default() }
        };
        Ok(fields.iter().map(known).collect())
    }

    fn standing_commands(&self, tenant: &str, user: Uuid) -> Pipeline {
        let mut pipe = redis::pipe();
        pipe.atomic();
        let user = user.to_string();
        pipe.cmd("EXISTS").arg(self.0.keys.inbox(tenant, &user));
        pipe.cmd("EXISTS").arg(self.0.keys.shared(tenant));
        pipe.cmd("HMGET")
            .arg(self.0.keys.meta(tenant))
            .arg(&[meta::GENERATION, meta::STATE, meta::GROUPS_RESET]);
        checkpoint_command(&mut pipe, &self.0.keys);
        pipe.cmd("HGETALL").arg(self.0.keys.members(tenant, &user));
        pipe
    }

    async fn stand(&self, tenant: &str, replies: StandingReplies) -> Result<Standing, Error> {
        let (inbox, shared, meta, checkpoint, members) = replies;
        let (meta, view) = (Meta::parse(meta), parse_view(&checkpoint)?);
        let mut members = Members::parse(&members);
        let mut missing_groups: Vec<GroupId> = Vec::new();
        let mut lacks_members = false;
        if self.has_groups() {
            lacks_members = !members.is_of(view.epoch, meta.generation, meta.groups_reset) || members.since.is_none();
            if !lacks_members {
                missing_groups = self.without_streams(tenant, members.groups.keys()).await?;
            }
        } else {
            members = Members::default();
        }
        Ok(Standing {
            view,
            generation: meta.generation.unwrap_or(0),
            missing: Missing {
                tenant: !shared || meta.generation.is_none(),
                inbox: !inbox,
                groups: lacks_members || !missing_groups.is_empty(),
            },
            is_paused: meta.is_paused,
            members: Arc::new(members),
            lacks_members,
            missing_groups,
            groups_reset: meta.groups_reset,
        })
    }

    /// Those of the groups that have no stream.
    async fn without_streams(
        &self,
        tenant: &str,
        groups: impl Iterator<Item = &GroupId> + Clone,
    ) -> Result<Vec<GroupId>, Error> {
        let mut pipe = redis::pipe();
        for group in groups.clone() {
            pipe.cmd("EXISTS").arg(self.0.keys.group(tenant, group));
        }
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        let exist: Vec<bool> = self.query(&pipe).await?;
        let missing = groups.zip(exist).filter(|(_, exists)| !exists);
        Ok(missing.map(|(group, _)| group.clone()).collect())
    }

    /// Lets the publisher keep a user's memberships from here on; gives what is published. `None` without a checkpoint or the
    /// tenant's streams.
    pub async fn mark_members(&self, tenant: &str, user: Uuid) -> Result<Option<StreamId>, Error> {
        let keys = [
            self.0.keys.members(tenant, &user.to_string()),
            self.0.keys.checkpoint(),
            self.0.keys.meta(tenant),
        ];
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(lua::MARK_MEMBERS).arg(keys.len()).arg(&keys);
        pipe.arg(GROUPS_MAX);
        let (marked,): (Option<String>,) = self.query(&pipe).await?;
        Ok(marked.and_then(|marked| marked.parse().ok()))
    }

    /// What is needed before a user's memberships are read from Postgres, all of one moment.
    pub async fn membership_handoff(&self, tenant: &str, user: Uuid) -> Result<MembershipHandoff, Error> {
        let mut pipe = self.standing_commands(tenant, user);
        pipe.cmd("HGETALL").arg(self.0.keys.window());
        pipe.cmd("ZRANGE").arg(self.0.keys.memberships(tenant)).arg(0).arg(-1);
        pipe.cmd("HGET").arg(self.0.keys.checkpoint()).arg(MEMBERSHIPS);
        pipe.cmd("HGET")
            .arg(self.0.keys.meta(tenant))
            .arg(meta::GROUPS_RESET_XID);
        type Replies = (
            bool,
            bool,
            Values,
            Values,
            Fields,
            Fields,
            Vec<String>,
            Option<String>,
            Option<String>,
        );
        let (inbox, shared, meta, checkpoint, members, window, log, kept, reset_xid): Replies =
            self.query(&pipe).await?;
        let standing = self.stand(tenant, (inbox, shared, meta, checkpoint, members)).await?;
        let since = memberships_since(kept.as_deref(), standing.view.term);
        Ok(MembershipHandoff {
            log: MembershipLog::parse(&log).kept_since(since),
            reset_xid: reset_xid.and_then(|xid| xid.parse().ok()),
            handoff: Handoff {
                standing,
                window: WindowEntry::parse_all(&window),
            },
        })
    }

    /// Adds a user's memberships as of the mark, each with the position behind which its stream is read, to what the publisher
    /// recorded since. Postgres shows everything up to `since`.
    pub async fn add_members(
        &self,
        tenant: &str,
        user: Uuid,
        (mark, since): (StreamId, StreamId),
        groups: &BTreeMap<GroupId, StreamId>,
    ) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(lua::ADD_MEMBERS).arg(1);
        pipe.arg(self.0.keys.members(tenant, &user.to_string()));
        pipe.arg(mark.to_string()).arg(since.to_string()).arg(GROUPS_MAX);
        for (group, position) in groups {
            pipe.arg(group.to_string()).arg(position.to_string());
        }
        pipe.ignore();
        Ok(self.query::<()>(&pipe).await?)
    }
}

/// Whether the inbox and `shared` exist, the tenant's meta hash, the checkpoint, and the user's memberships.
type StandingReplies = (bool, bool, Values, Values, Fields);
