//! Lanes beside the main one: other Redis servers, each with a replication slot of its own.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::Config;
use super::environment::read_secret;
use super::replication::check_name;
use super::secret::Secret;
use super::section::within;
use crate::core::lane::{Lanes, MAIN, is_valid_name};

/// The name of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneName(Arc<str>);

impl Default for LaneName {
    fn default() -> Self {
        Self(MAIN.into())
    }
}

impl LaneName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of the main lane.
    pub fn is_main(&self) -> bool {
        *self.0 == *MAIN
    }
}

impl std::fmt::Display for LaneName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lane: where the streams of its tenants are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// 1 to 24 of a-z, 0-9 and _.
    pub name: String,
    /// Connection URL of its Redis, in the form of `redis.url`; the other keys of `redis` are for all lanes. Empty means
    /// `redis.url`.
    #[serde(default)]
    pub redis_url: Secret,
    /// File with that URL, in place of `redis_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_url_file: Option<String>,
    /// Its replication slot; default that of the main lane with `_` and the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// Checks all lanes.
pub(super) fn check_all(config: &Config) -> Result<()> {
    // Each slot makes Postgres read the whole log.
    within("lanes (their number)", config.lanes.len() as u64, &(0..=16))?;
    let mut slots = vec![config.replication.slot.clone()];
    for (place, lane) in config.lanes.iter().enumerate() {
        let name = &lane.name;
        if !is_valid_name(name) {
            bail!("key `lanes[{place}].name` is {name:?}: allowed are a letter and up to 23 of a-z, 0-9 and _");
        }
        if name == MAIN || config.lanes[..place].iter().any(|other| other.name == *name) {
            bail!("key `lanes[{place}].name` is {name:?}, the name of another lane: choose another one");
        }
        if lane.redis_url_file.is_some() && !lane.redis_url.expose().is_empty() {
            bail!("keys `lanes[{place}].redis_url` and `lanes[{place}].redis_url_file`: set one of them");
        }
        let slot = lane.slot(config);
        check_name(&format!("lanes[{place}].slot"), &slot)?;
        if slots.contains(&slot) {
            bail!("key `lanes[{place}].slot` is {slot:?}, the slot of another lane: each needs its own");
        }
        slots.push(slot);
    }
    Ok(())
}

/// Reads the files that name URLs.
pub(super) fn read_files(lanes: &mut [Lane]) -> Result<()> {
    for (place, lane) in lanes.iter_mut().enumerate() {
        if let Some(file) = &lane.redis_url_file {
            lane.redis_url = Secret::new(read_secret(&format!("key `lanes[{place}].redis_url_file`"), file)?);
        }
    }
    Ok(())
}

impl Lane {
    fn slot(&self, config: &Config) -> String {
        let default = || format!("{}_{}", config.replication.slot, self.name);
        self.slot.clone().unwrap_or_else(default)
    }
}

impl Config {
    /// The replication slots of all lanes, that of the main one first.
    pub fn slots(&self) -> Vec<String> {
        let others = self.lanes.iter().map(|lane| lane.slot(self));
        std::iter::once(self.replication.slot.clone()).chain(others).collect()
    }

    /// The settings of each lane: those of the main one, with other values of `redis` and `replication`. Keys of a lane begin
    /// with its name in braces, so that Redis Cluster keeps them in one slot.
    pub fn of_lanes(&self) -> Lanes<Self> {
        let mut lanes = Lanes::of_main(self.clone());
        for lane in &self.lanes {
            let mut config = self.clone();
            if !lane.redis_url.expose().is_empty() {
                config.redis.url = lane.redis_url.clone();
            }
            config.redis.cluster = self.redis.cluster.apart();
            config.redis.prefix = format!("{}:{{{}}}", self.redis.prefix, lane.name);
            config.replication.slot = lane.slot(self);
            config.lane = LaneName(lane.name.as_str().into());
            lanes.add(&lane.name, config);
        }
        lanes
    }
}
