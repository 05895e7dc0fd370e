//! An entry of the live stream: the text of its notices, to two subscribers.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use posduif::contract::notice::LiveEntry;
use posduif::core::position::StreamId;
use posduif::live::hub::Hub;
use posduif::live::tail;
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    let hub = Hub::new(16);
    let mut one = hub.subscribe("acme", Uuid::nil());
    let mut other = hub.subscribe("globex", Uuid::nil());
    let mut last = None;
    // Fields are separated by bytes 0, entries by bytes 1: neither stands in JSON.
    for (number, entry) in (1_u64..).zip(bytes.split(|byte| *byte == 1)) {
        let fields: HashMap<&str, String> = ["notices", "prev", "epoch", "heartbeat"]
            .into_iter()
            .zip(entry.split(|byte| *byte == 0))
            .map(|(name, text)| (name, String::from_utf8_lossy(text).into_owned()))
            .collect();
        let id = StreamId { ms: number, seq: 0 };
        let entry = LiveEntry::parse(|name| fields.get(name).cloned());
        tail::receive(&hub, id, &entry, &mut last);
        assert_eq!(last, Some(id));
        assert_eq!(hub.freshness().borrow().position, id);
    }
    while one.try_signals().is_some() {}
    while other.try_signals().is_some() {}
});
