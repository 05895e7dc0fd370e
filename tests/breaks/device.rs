//! A device that syncs, and what it holds.

use std::collections::BTreeMap;

use hyper::Method;
use serde_json::Value;
use uuid::Uuid;

use crate::support::http::Api;

/// A device, and what it holds: contents by id.
pub(super) struct Device {
    pub(super) api: Api,
    pub(super) tenant: &'static str,
    pub(super) user: Uuid,
    pub(super) cursor: Option<String>,
    pub(super) notes: BTreeMap<String, String>,
    pub(super) messages: BTreeMap<String, String>,
    /// How often it was reset.
    pub(super) resets: usize,
}

impl Device {
    /// Syncs to the end, or until a request fails. True if none did.
    pub(super) async fn sync(&mut self) -> bool {
        for _ in 0..1000 {
            let from = self
                .cursor
                .as_ref()
                .map_or(String::new(), |cursor| format!("?cursor={cursor}"));
            let path = format!("/api/sync/incoming{from}");
            let Ok(answer) = self.api.try_send(Method::GET, &path, None, "").await else {
                return false;
            };
            if answer.status != 200 {
                if answer.status == 400 {
                    assert_eq!(answer.code(), "INVALID_CURSOR");
                    self.cursor = None;
                }
                return false;
            }
            let page = answer.json();
            self.take(&page);
            self.cursor = Some(page["cursor"].as_str().unwrap().to_owned());
            if page["has_more"] != true {
                return true;
            }
        }
        panic!("a sync without end");
    }

    fn take(&mut self, page: &Value) {
        if page["reset"] == true {
            self.resets += 1;
            self.notes.clear();
            self.messages.clear();
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for message in page["messages"].as_array().unwrap() {
            self.messages.insert(text(&message["id"]), text(&message["content"]));
        }
        for change in page["changes"].as_array().unwrap() {
            let id = text(&change["id"]);
            match (change["table"].as_str().unwrap(), change["op"].as_str().unwrap()) {
                ("messages", "delete") => self.messages.remove(&id),
                ("notes", "delete") => self.notes.remove(&id),
                ("notes", _) => self.notes.insert(id, text(&change["row"]["body"])),
                _ => None,
            };
        }
    }
}
