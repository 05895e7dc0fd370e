//! The checkpoint, the window and the state of the append-only file, as lines `name:value`.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use posduif::contract::checkpoint::Checkpoint;
use posduif::contract::window::WindowEntry;
use posduif::publish::durability::AofState;

fuzz_target!(|text: &str| {
    let _ = AofState::parse(text);
    let fields: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Ok(Some(checkpoint)) = Checkpoint::parse(&fields) {
        let written = checkpoint
            .fields()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        assert_eq!(Checkpoint::parse(&written), Ok(Some(checkpoint)));
    }
    for (first, runs) in &fields {
        if let Some(entry) = WindowEntry::parse(first, runs) {
            let again = WindowEntry::parse(&entry.first.to_string(), &entry.encode());
            assert_eq!(again, Some(entry));
        }
    }
});
