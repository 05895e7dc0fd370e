//! Whether Redis is a cluster, and the node that has a lane.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Host and port of a node.
pub type Node = (String, u16);

/// Most nodes that are remembered, to be asked when others do not answer.
const NODES_MAX: usize = 64;

/// Whether Redis is a cluster; then also which node has the lane, as far as that is known. Cloning shares what is known.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub struct Cluster {
    is_on: bool,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    node: ArcSwapOption<Node>,
    nodes: Mutex<Vec<Node>>,
}

impl Cluster {
    /// Whether it is one.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The same for another lane, of which nothing is known.
    pub(super) fn apart(&self) -> Self {
        self.is_on.into()
    }

    /// The primary of the lane's hash slot, as it was last found.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.known.node.load_full()
    }

    /// Nodes that may know the primary, that one first.
    pub fn nodes(&self) -> Vec<Node> {
        let primary = self.node().map(|node| Node::clone(&node));
        let others = self.known.nodes.lock().clone();
        let others = others.into_iter().filter(|node| primary.as_ref() != Some(node));
        primary.clone().into_iter().chain(others).collect()
    }

    /// Keeps what a node said. Returns whether the primary is another one than before.
    pub fn learn(&self, primary: Node, mut nodes: Vec<Node>) -> bool {
        nodes.truncate(NODES_MAX);
        *self.known.nodes.lock() = nodes;
        let differs = self.node().is_none_or(|node| *node != primary);
        if differs {
            self.known.node.store(Some(Arc::new(primary)));
        }
        differs
    }
}

impl From<bool> for Cluster {
    fn from(is_on: bool) -> Self {
        Self {
            is_on,
            known: Arc::default(),
        }
    }
}

impl From<Cluster> for bool {
    fn from(cluster: Cluster) -> Self {
        cluster.is_on
    }
}

impl PartialEq for Cluster {
    fn eq(&self, other: &Self) -> bool {
        self.is_on == other.is_on
    }
}
