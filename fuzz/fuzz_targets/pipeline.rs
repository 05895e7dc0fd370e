//! A sequence of pgoutput messages, each behind its length in two bytes, from the log to Redis' commands.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use posduif::config::group::Group;
use posduif::config::rule::{Recipient, Rule};
use posduif::contract::keys::Keys;
use posduif::core::position::StreamId;
use posduif::core::resp::{self, Reply};
use posduif::replication::epoch::Replay;
use posduif::replication::pipeline::{Pipeline, Start};
use posduif::route::router::Router;
use serde_json::Value;

/// Fields that hold JSON.
const JSON: [&[u8]; 4] = [b"row", b"old", b"unchanged", b"notices"];

fuzz_target!(|bytes: &[u8]| {
    let start = Start {
        base: 7,
        position: StreamId::ZERO,
        seen: StreamId::ZERO,
        replay: Replay::free(),
        lane: "main".into(),
        tenants: ["acme".into(), "demo".into()].into(),
        elsewhere: ["globex".into()].into(),
        logical_messages: true,
    };
    let rule = Rule {
        table: "notes".to_owned(),
        to: vec!["user_id".into(), Recipient::Group([("list".to_owned(), "list_id".to_owned())].into())],
        event: "note_changed".to_owned(),
        when: Default::default(),
        ..Rule::default()
    };
    let list = Group {
        table: "list_members".to_owned(),
        schema: None,
        tenant: None,
        subjects: None,
        id: "list_id".to_owned(),
        user: "user_id".to_owned(),
    };
    let router = Router::new(vec![rule], [("list".to_owned(), list)].into());
    let mut pipeline = Pipeline::new(Keys::new("posduif"), router, "posduif", start);
    let (mut rest, mut received) = (bytes, pipeline.received());
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
        let (message, behind) = behind.split_at(length);
        rest = behind;
        if let Err(error) = pipeline.apply(message) {
            // The engine ends here.
            let _ = error.to_string();
            break;
        }
        assert!(pipeline.received() >= received);
        received = pipeline.received();
    }
    let batch = pipeline.take_batch();
    let (commands, notices) = batch.commands();
    assert!(serde_json::from_slice::<Vec<Value>>(&[b"[", notices, b"]"].concat()).is_ok());
    let mut commands = BytesMut::from(commands);
    while let Some(command) = resp::parse(&mut commands).expect("commands are RESP") {
        let Reply::Array(arguments) = command else {
            panic!("a command is {command:?}");
        };
        let arguments: Vec<&[u8]> = arguments
            .iter()
            .map(|argument| match argument {
                Reply::Bulk(bytes) => &bytes[..],
                other => panic!("an argument is {other:?}"),
            })
            .collect();
        // Key, options and ID come before the fields.
        if let Some(fields) = arguments.iter().position(|argument| *argument == b"op") {
            for pair in arguments[fields..].chunks_exact(2) {
                if JSON.contains(&pair[0]) {
                    let judged = serde_json::from_slice::<serde::de::IgnoredAny>(pair[1]);
                    assert!(judged.is_ok(), "{judged:?}");
                }
            }
        }
    }
    assert!(commands.is_empty());
});
