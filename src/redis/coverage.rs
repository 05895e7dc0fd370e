//! Whether streams have every entry behind a position, although a `reset` entry follows it.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::store::{Error, Store};
use crate::contract::members::Members;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;

impl Store {
    /// Whether the streams of a user have existed since a position, each without being created again: then they have
    /// all entries behind it that were not trimmed.
    pub async fn reach_back(
        &self,
        tenant: &str,
        user: Uuid,
        members: &Members,
        position: StreamId,
    ) -> Result<bool, Error> {
        let name: Arc<str> = tenant.into();
        let own = [Target::Inbox(name.clone(), user), Target::Shared(name.clone())];
        let mut streams: Vec<(Target, StreamId)> = own.map(|target| (target, position)).into();
        streams.extend(members.groups.iter().map(|(group, joined)| {
            let target = Target::Group(name.clone(), group.clone());
            (target, position.max(*joined))
        }));
        let mut pipe = redis::pipe();
        for (target, position) in &streams {
            pipe.cmd("XRANGE").arg(target.key(self.keys())).arg("-");
            pipe.arg(position.to_string()).arg(&["COUNT", "1"]);
        }
        let oldest: Vec<Vec<redis::Value>> = self.query(&pipe).await?;
        let mut pipe = redis::pipe();
        for ((target, _), _) in streams.iter().zip(&oldest).filter(|(_, oldest)| oldest.is_empty()) {
            pipe.cmd("XINFO").arg("STREAM").arg(target.key(self.keys()));
        }
        if pipe.is_empty() {
            return Ok(true);
        }
        match self.query::<Vec<redis::Value>>(&pipe).await {
            Ok(infos) => Ok(infos.iter().all(was_trimmed)),
            // A stream does not exist, or the ACL forbids the command.
            Err(error) if error.code().is_some() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether entries of a stream were trimmed since it was created, by the reply to `XINFO STREAM`.
fn was_trimmed(info: &redis::Value) -> bool {
    let fields: HashMap<String, redis::Value> = redis::from_redis_value_ref(info).unwrap_or_default();
    let number = |name: &str| match fields.get(name) {
        Some(redis::Value::Int(number)) => Some(*number),
        _ => None,
    };
    matches!((number("entries-added"), number("length")), (Some(added), Some(length)) if added > length)
}
