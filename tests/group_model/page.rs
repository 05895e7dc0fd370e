//! The page of a web user, who reads live events.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::case::Case;
use crate::phone::{Event, EventSource as _, Http};
use crate::support::unreliable::Address;

/// Follows the events of bob's page as long as the story lasts, also when the engine starts again.
pub(super) struct Page {
    seen: Arc<Mutex<Vec<Event>>>,
    task: JoinHandle<()>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Page {
    pub(super) fn open(case: &Case<'_>) -> Self {
        let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (address, events) = (case.stage.address.clone(), seen.clone());
        let path = format!("/sse/web/{}", case.tenant.bob);
        let token = format!("Bearer {}", case.tenant.token);
        let task = tokio::spawn(async move {
            loop {
                follow(&address, &path, &token, &events).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { seen, task }
    }

    /// An event about a row that its reader never saw; `seen` has table and id of those that the reader saw.
    pub(super) fn foreign(&self, seen: &HashSet<(String, String)>) -> Option<Event> {
        let events = self.seen.lock().unwrap();
        let is_foreign = |event: &&Event| {
            let field = |name: &str| event.field(name).and_then(|value| Some(value.as_str()?.to_owned()));
            let row = match (field("message_id"), field("table")) {
                (Some(id), _) => Some(("messages".to_owned(), id)),
                (None, Some(table)) if ["lists", "tasks", "notes"].contains(&table.as_str()) => {
                    field("id").map(|id| (table, id))
                }
                _ => None,
            };
            let is_gone = event.name.ends_with("deleted") || field("op").as_deref() == Some("delete");
            !is_gone && row.is_some_and(|row| !seen.contains(&row))
        };
        events.iter().find(is_foreign).cloned()
    }
}

async fn follow(address: &Address, path: &str, token: &str, seen: &Mutex<Vec<Event>>) {
    let base = format!("http://{}", address.lock().unwrap());
    let mut headers = vec![("authorization", token.to_owned())];
    let last = seen.lock().unwrap().iter().rev().find_map(|event| event.id.clone());
    headers.extend(last.map(|id| ("last-event-id", id)));
    let Ok(mut stream) = Http::new(&base).events(path.to_owned(), headers).await else {
        return;
    };
    while let Ok(events) = stream.receive().await {
        seen.lock().unwrap().extend(events);
    }
}
