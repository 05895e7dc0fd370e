//! `posduif lane`: which Redis and which replication slot have the streams of which tenants.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Render, Text};
use super::table::{Cell, Tone, or_nothing};
use super::{Global, human};
use crate::config::Config;
use crate::net;
use crate::postgres::Database;
use crate::redis::store::{Error, Store};
use crate::replication::slot;

#[derive(Debug, Args)]
pub(super) struct LaneCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List all lanes, each with its Redis, its slot and the number of its tenants
    List,
}

impl LaneCommand {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::List => output::print(global, &LaneList::read(&config, &database).await?),
        }
    }
}

/// One lane.
#[derive(Serialize)]
struct LaneRecord {
    name: String,
    /// The address of its Redis, or of its node of a cluster.
    redis: String,
    prefix: String,
    slot: String,
    tenants: usize,
    /// The number of its epoch; absent before its engine has published anything, or when its Redis does not answer.
    epoch: Option<i64>,
    /// Bytes of WAL that Postgres retains for the slot.
    retained_wal_bytes: Option<u64>,
    /// What is wrong with it.
    problem: Option<String>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct LaneList(Vec<LaneRecord>);

impl LaneList {
    async fn read(config: &Config, database: &Database) -> Result<Self> {
        let directory = super::directory(database).await?;
        let mut lanes = Vec::new();
        for (name, config) in config.of_lanes().iter() {
            let tenants = directory.iter().filter(|listed| listed.lane == name).count();
            lanes.push(LaneRecord::read(name, config, database, tenants).await?);
        }
        Ok(Self(lanes))
    }
}

impl LaneRecord {
    async fn read(name: &str, config: &Config, database: &Database, tenants: usize) -> Result<Self> {
        let store = Store::new(&config.redis)?;
        // Without an answer each read would wait for its own timeout.
        let checkpoint = match store.check().await {
            Ok(()) => store.checkpoint().await,
            Err(error) => Err(error),
        };
        let slot = slot::state(database, &config.replication.slot).await?;
        let retained = slot::retained(database, &config.replication.slot).await?;
        let (epoch, problem) = match (checkpoint, &slot) {
            (Ok(Some(checkpoint)), Some(_)) => (Some(checkpoint.epoch.number), None),
            (Ok(Some(checkpoint)), None) => (Some(checkpoint.epoch.number), Some("its slot is missing".to_owned())),
            (Ok(None) | Err(Error::NoCheckpoint), _) => (None, Some("no engine has published anything".to_owned())),
            (Err(error), _) => (None, Some(error.to_string())),
        };
        Ok(Self {
            name: name.to_owned(),
            redis: match config.redis.cluster.node() {
                Some(node) => format!("{}:{}", node.0, node.1),
                None => net::redis::place(&config.redis),
            },
            prefix: config.redis.keys_prefix().into_owned(),
            slot: config.replication.slot.clone(),
            tenants,
            epoch,
            retained_wal_bytes: retained,
            problem,
        })
    }
}

impl Render for LaneList {
    fn text(&self, out: &mut Text) {
        let row = |lane: &LaneRecord| {
            let problem = lane.problem.clone().unwrap_or_default();
            [
                Cell::from(lane.name.clone()),
                lane.redis.clone().into(),
                lane.slot.clone().into(),
                lane.tenants.to_string().into(),
                or_nothing(lane.epoch).into(),
                or_nothing(lane.retained_wal_bytes.map(human::bytes)).into(),
                Cell::from(problem).toned(Tone::Bad),
            ]
        };
        let head = ["LANE", "REDIS", "SLOT", "TENANTS", "EPOCH", "WAL", "PROBLEM"];
        out.table(head, self.0.iter().map(row));
    }
}
