//! What a stream loses at its old end.

use bytes::BytesMut;
use tokio::sync::oneshot;

use crate::contract::control::Trim;
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::contract::{lua, meta};
use crate::core::position::StreamId;
use crate::core::resp;

/// A stream and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub target: Target,
    pub keep: Keep,
}

/// A cut on its way to Redis. It is dropped without an answer when its session ends first.
#[derive(Debug)]
pub struct CutRequest {
    pub cut: Cut,
    /// Receives how many entries were removed, or why none could be.
    pub answer: Option<oneshot::Sender<Result<u64, String>>>,
}

/// The entries that a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Those from this ID on.
    From(StreamId),
    /// So many of the newest.
    Newest(u64),
}

impl From<Trim> for Cut {
    fn from(trim: Trim) -> Self {
        Self {
            target: trim.target,
            keep: Keep::From(trim.min_id),
        }
    }
}

impl Cut {
    /// The key that holds the trim point.
    pub(super) fn meta(&self, keys: &Keys) -> String {
        keys.meta(self.target.tenant())
    }

    /// Writes the command. The trim point is stored with it, because Redis does not keep it. Outside of a guarded
    /// `EXEC` the script checks the writer.
    pub(super) fn write(&self, keys: &Keys, writer: &str, out: &mut BytesMut) {
        let kept = match self.keep {
            Keep::From(id) => id.to_string(),
            // A stream without entries has no first one for the trim point.
            Keep::Newest(entries) => entries.max(1).to_string(),
        };
        let (checkpoint, meta, stream) = (keys.checkpoint(), self.meta(keys), self.target.key(keys));
        let field = meta::trim_field(&self.target);
        let command = [
            "EVAL",
            lua::TRIM,
            "3",
            &checkpoint,
            &meta,
            &stream,
            writer,
            &field,
            &kept,
        ];
        resp::command(out, &command.map(str::as_bytes));
    }
}
