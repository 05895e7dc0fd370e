//! The parts of a process that each lane has.

use std::sync::Arc;

use crate::config::Config;
use crate::live::hub::Hub;
use crate::live::visibility::Visibility;
use crate::redis::store::Store;
use crate::replication::report::ReplicationStatus;

/// The parts of a lane; the same for all roles.
#[derive(Debug)]
pub struct Lane {
    /// Its settings.
    pub config: Arc<Config>,
    pub store: Store,
    pub hub: Hub,
    pub visibility: Visibility,
    /// The state of this process's replicator; `None` without one.
    pub replication: Option<ReplicationStatus>,
}
