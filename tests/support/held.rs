//! What a device of a test holds.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::Mutex;

use super::http::Api;
use super::{World, eventually_within};

/// Servers may have to fail over meanwhile.
const LIMIT: Duration = Duration::from_secs(60);

/// What a device holds after batches: the contents of its messages by their ids.
#[derive(Default)]
pub(crate) struct Held {
    cursor: Option<String>,
    messages: BTreeMap<String, String>,
    /// How often it was reset.
    pub(crate) resets: usize,
}

impl Held {
    /// Takes one batch. False if the server gives none.
    pub(crate) async fn take(&mut self, phone: &Api) -> bool {
        let query = self
            .cursor
            .as_ref()
            .map_or(String::new(), |cursor| format!("?cursor={cursor}"));
        let answer = phone.get(&format!("/api/sync/incoming{query}")).await;
        if answer.status != 200 {
            return false;
        }
        let batch = answer.json();
        if batch["reset"] == true {
            self.messages.clear();
            self.resets += 1;
        }
        for row in batch["messages"].as_array().unwrap() {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            self.messages.insert(text("id"), text("content"));
        }
        self.cursor = batch["cursor"].as_str().map(str::to_owned);
        true
    }

    /// Takes batches until the device holds the messages that Postgres has in a schema.
    pub(crate) async fn follow(&mut self, phone: &Api, world: &World, schema: &str) {
        let query = format!("SELECT id::text, content FROM {schema}.messages");
        let rows = world.psql().await.query(&query, &[]).await.unwrap();
        let truth: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let held = Mutex::new(self);
        let what = format!("the device holds what {schema} has");
        eventually_within(LIMIT, &what, || async {
            let mut held = held.lock().await;
            held.take(phone).await;
            (held.messages == truth).then_some(())
        })
        .await;
    }
}
