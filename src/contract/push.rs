//! Entries of the stream `push`: devices that are away and have something to sync.

/// Names of an entry's fields.
pub const FIELDS: [&str; 5] = ["id", "user_id", "device_id", "event", "pending"];

/// An entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushEntry {
    /// Identifies the entry for the webhook's receiver, however often it is sent.
    pub id: String,
    pub user_id: String,
    pub device_id: String,
    /// The live event of the last change that waits.
    pub event: String,
    /// How many changes wait, as far as they were counted.
    pub pending: u64,
}

impl PushEntry {
    /// Its fields and their texts.
    pub fn encode(&self) -> [(&'static str, String); 5] {
        let [id, user_id, device_id, event, pending] = FIELDS;
        [
            (id, self.id.clone()),
            (user_id, self.user_id.clone()),
            (device_id, self.device_id.clone()),
            (event, self.event.clone()),
            (pending, self.pending.to_string()),
        ]
    }

    /// Reads its fields, alternating names and texts. A field that is missing or malformed is empty.
    pub fn parse(fields: &[String]) -> Self {
        let (pairs, _) = fields.as_chunks::<2>();
        let field = |name: &str| {
            let found = pairs.iter().find(|[key, _]| key == name);
            found.map(|[_, value]| value.clone()).unwrap_or_default()
        };
        let [id, user_id, device_id, event, pending] = FIELDS;
        Self {
            id: field(id),
            user_id: field(user_id),
            device_id: field(device_id),
            event: field(event),
            pending: field(pending).parse().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn push_entry_reads_as_written(texts in any::<[String; 4]>(), pending in any::<u64>()) {
            let [id, user_id, device_id, event] = texts;
            let entry = PushEntry { id, user_id, device_id, event, pending };
            let fields: Vec<String> = entry
                .encode()
                .into_iter()
                .flat_map(|(name, text)| [name.to_owned(), text])
                .collect();
            prop_assert_eq!(PushEntry::parse(&fields), entry);
        }
    }
}
