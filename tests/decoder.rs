//! The decoder on bytes of a real server (`scripts/record-pgoutput`), and on arbitrary ones.

use std::collections::HashMap;

use posduif::decode::pgoutput::{
    Begin, Cell, Commit, Message, Old, Relation, RelationColumn, ReplicaIdentity, Tuple, decode,
};
use postgres_types::PgLsn;
use proptest::prelude::*;

/// What was recorded: the messages of each case, and what SQL said.
struct Recording {
    cases: Vec<(String, Vec<Vec<u8>>)>,
    facts: HashMap<String, u32>,
}

fn recording() -> Recording {
    let mut recording = Recording {
        cases: Vec::new(),
        facts: HashMap::new(),
    };
    for line in include_str!("data/pgoutput-15.txt").lines() {
        if let Some(fact) = line.strip_prefix("fact ") {
            let (name, value) = fact.split_once(' ').unwrap();
            recording.facts.insert(name.to_owned(), value.parse().unwrap());
            continue;
        }
        let (case, hex) = line.split_once(' ').unwrap();
        let digits = hex.as_bytes().chunks_exact(2);
        let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        if recording.cases.last().is_none_or(|(last, _)| last != case) {
            recording.cases.push((case.to_owned(), Vec::new()));
        }
        recording.cases.last_mut().unwrap().1.push(bytes.collect());
    }
    recording
}

impl Recording {
    fn oid(&self, name: &str) -> u32 {
        self.facts[name]
    }

    /// What comes before the first row of a table.
    fn description(&self, table: &str) -> Vec<Message<'static>> {
        let column = |is_key, name, type_oid, type_modifier| RelationColumn {
            is_key,
            name,
            type_oid,
            type_modifier,
        };
        let (int4, text, varchar) = (23, 25, 1043);
        let (mood, moods, percent) = (self.oid("mood"), self.oid("_mood"), self.oid("percent"));
        let (name, replica_identity, columns) = match table {
            "by_key" => (
                "by_key",
                ReplicaIdentity::Default,
                vec![
                    column(true, "id", int4, -1),
                    // varchar(20); the modifier counts the length word (Postgres chapter 53.1).
                    column(false, "name", varchar, 24),
                    column(false, "body", text, -1),
                ],
            ),
            "by_index" => (
                "by_index",
                ReplicaIdentity::Index,
                vec![column(false, "id", int4, -1), column(true, "code", text, -1)],
            ),
            "whole" => (
                "whole",
                ReplicaIdentity::Full,
                vec![
                    column(true, "id", int4, -1),
                    column(true, "mood", mood, -1),
                    column(true, "moods", moods, -1),
                    column(true, "share", percent, -1),
                ],
            ),
            "without" => ("without", ReplicaIdentity::Nothing, vec![column(false, "id", int4, -1)]),
            _ => ("child", ReplicaIdentity::Default, vec![column(false, "id", int4, -1)]),
        };
        let mut messages = Vec::new();
        if name == "whole" {
            // A domain is described by its base type, which is built in: an empty schema means pg_catalog.
            for (oid, namespace, name) in [
                (mood, "public", "mood"),
                (moods, "public", "_mood"),
                (percent, "", "int4"),
            ] {
                messages.push(Message::Type { oid, namespace, name });
            }
        }
        messages.push(Message::Relation(Relation {
            oid: self.oid(table),
            namespace: "public",
            name,
            replica_identity,
            columns,
        }));
        messages
    }

    /// What a case must hold between its Begin and its Commit.
    fn expected(&self, case: &str) -> Vec<Message<'static>> {
        let row = |cells: &[&'static str]| -> Tuple<'static> {
            let cell = |text: &&'static str| match *text {
                "NULL" => Cell::Null,
                "UNCHANGED" => Cell::Unchanged,
                text => Cell::Text(text.as_bytes()),
            };
            cells.iter().map(cell).collect()
        };
        let insert = |table: &str, cells: &[&'static str]| Message::Insert {
            relation: self.oid(table),
            new: row(cells),
        };
        let update = |table: &str, old: Option<Old<'static>>, cells: &[&'static str]| Message::Update {
            relation: self.oid(table),
            old,
            new: row(cells),
        };
        let delete = |table: &str, old| Message::Delete {
            relation: self.oid(table),
            old,
        };
        let key = |cells: &[&'static str]| Old::Key(row(cells));
        let full = |cells: &[&'static str]| Old::Full(row(cells));
        let truncate = |tables: &[&str], cascade, restart_identity| Message::Truncate {
            relations: tables.iter().map(|table| self.oid(table)).collect(),
            cascade,
            restart_identity,
        };
        let large = "0123456789".repeat(300).leak();
        let (tables, changes): (&[&str], _) = match case {
            "insert" => (&["by_key"], vec![insert("by_key", &["1", "a", "NULL"])]),
            "insert_other_types" => (
                &["whole"],
                vec![
                    insert("whole", &["1", "happy", "{sad,happy}", "7"]),
                    insert("whole", &["2", "NULL", "NULL", "NULL"]),
                ],
            ),
            "insert_without_identity" => (&["without"], vec![insert("without", &["1"])]),
            "insert_by_index" => (&["by_index"], vec![insert("by_index", &["1", "x"])]),
            "update" => (&["by_key"], vec![update("by_key", None, &["1", "b", "NULL"])]),
            "update_of_key" => {
                let old = key(&["1", "NULL", "NULL"]);
                (&["by_key"], vec![update("by_key", Some(old), &["2", "b", "NULL"])])
            }
            "update_by_index" => (
                &["by_index"],
                vec![update("by_index", Some(key(&["NULL", "x"])), &["1", "y"])],
            ),
            "update_full" => {
                let old = full(&["1", "happy", "{sad,happy}", "7"]);
                (
                    &["whole"],
                    vec![update("whole", Some(old), &["1", "happy", "{sad,happy}", "8"])],
                )
            }
            "insert_large" => (&["by_key"], vec![insert("by_key", &["3", "c", large])]),
            "update_beside_large" => (&["by_key"], vec![update("by_key", None, &["3", "d", "UNCHANGED"])]),
            "update_key_beside_large" => {
                let old = key(&["3", "NULL", "NULL"]);
                (&["by_key"], vec![update("by_key", Some(old), &["4", "d", "UNCHANGED"])])
            }
            "delete" => (&["by_key"], vec![delete("by_key", key(&["2", "NULL", "NULL"]))]),
            "delete_by_index" => (&["by_index"], vec![delete("by_index", key(&["NULL", "y"]))]),
            "delete_full" => (&["whole"], vec![delete("whole", full(&["2", "NULL", "NULL", "NULL"]))]),
            "truncate" => (&["whole"], vec![truncate(&["whole"], false, false)]),
            "truncate_restart" => (
                &["whole", "by_index"],
                vec![truncate(&["whole", "by_index"], false, true)],
            ),
            "truncate_cascade" => (&["by_key", "child"], vec![truncate(&["by_key", "child"], true, false)]),
            "truncate_both" => (&["by_key", "child"], vec![truncate(&["by_key", "child"], true, true)]),
            "message" => (&[], vec![]),
            "message_alone" => (&["without"], vec![insert("without", &["2"])]),
            "origin" => (&["without"], vec![insert("without", &["3"])]),
            other => panic!("the recording has the case {other}, which nobody expects"),
        };
        let descriptions = tables.iter().flat_map(|table| self.description(table));
        descriptions.chain(changes).collect()
    }
}

#[test]
fn decoder_reads_each_message_of_a_real_server() {
    let recording = recording();
    assert_eq!(recording.cases.len(), 21);
    for (case, messages) in &recording.cases {
        let mut messages: Vec<Message<'_>> = messages.iter().map(|bytes| decode(bytes).unwrap()).collect();
        // A message that is not part of a transaction comes whenever it was written.
        if case == "message_alone" {
            let Message::Logical {
                transactional: false,
                lsn,
                prefix: "app",
                content: b"",
            } = messages.remove(0)
            else {
                panic!("{messages:?}");
            };
            assert!(lsn > PgLsn::from(0));
        }
        let Message::Begin(Begin {
            final_lsn,
            commit_ts,
            xid,
        }) = messages.remove(0)
        else {
            panic!("{case} does not begin");
        };
        let Some(Message::Commit(commit)) = messages.pop() else {
            panic!("{case} does not end");
        };
        assert_eq!((commit.commit_lsn, commit.commit_ts), (final_lsn, commit_ts));
        assert!(commit.end_lsn > final_lsn);
        if case == "insert" {
            assert_eq!(xid, recording.facts["insert"]);
        }
        match case.as_str() {
            "origin" => {
                let origin = Message::Origin {
                    commit_lsn: PgLsn::from(0x00AB_CDEF),
                    name: "elsewhere",
                };
                assert_eq!(messages.remove(0), origin);
                // 2026-01-02 03:04:05 UTC
                assert_eq!(commit_ts, 1_767_323_045_000_000);
            }
            "message" => {
                let Message::Logical {
                    transactional: true,
                    lsn,
                    prefix: "app",
                    content: b"\x00\xff",
                } = messages.remove(0)
                else {
                    panic!("{messages:?}");
                };
                assert!(lsn <= final_lsn);
            }
            _ => {}
        }
        assert_eq!(messages, recording.expected(case), "{case}");
    }
}

#[test]
fn decoder_refuses_truncated_and_overlong_messages() {
    for (case, messages) in recording().cases {
        for message in messages {
            for length in 0..message.len() {
                assert!(decode(&message[..length]).is_err(), "{case}, {length} bytes");
            }
            let longer = [&message[..], b"\0"].concat();
            assert!(decode(&longer).is_err(), "{case}, a byte more");
        }
    }
}

/// A message that owns what it says.
#[derive(Debug, Clone)]
enum Said {
    Begin(u64, i64, u32),
    Commit(u64, u64, i64),
    Origin(u64, String),
    Relation(u32, String, String, ReplicaIdentity, Vec<(bool, String, u32, i32)>),
    Type(u32, String, String),
    Insert(u32, Vec<SaidCell>),
    Update(u32, Option<(bool, Vec<SaidCell>)>, Vec<SaidCell>),
    Delete(u32, bool, Vec<SaidCell>),
    Truncate(Vec<u32>, bool, bool),
    Logical(bool, u64, String, Vec<u8>),
}

#[derive(Debug, Clone)]
enum SaidCell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// Microseconds from 1970 to Postgres' own epoch, 2000-01-01.
const EPOCH: i64 = 946_684_800_000_000;

fn cells(cells: &[SaidCell]) -> Tuple<'_> {
    let cell = |cell| match cell {
        &SaidCell::Null => Cell::Null,
        SaidCell::Unchanged => Cell::Unchanged,
        SaidCell::Text(text) => Cell::Text(text),
        SaidCell::Binary(bytes) => Cell::Binary(bytes),
    };
    cells.iter().map(cell).collect()
}

fn old(is_full: bool, said: &[SaidCell]) -> Old<'_> {
    if is_full {
        Old::Full(cells(said))
    } else {
        Old::Key(cells(said))
    }
}

impl Said {
    fn message(&self) -> Message<'_> {
        match self {
            Self::Begin(lsn, ts, xid) => Message::Begin(Begin {
                final_lsn: (*lsn).into(),
                commit_ts: ts + EPOCH,
                xid: *xid,
            }),
            Self::Commit(lsn, end, ts) => Message::Commit(Commit {
                commit_lsn: (*lsn).into(),
                end_lsn: (*end).into(),
                commit_ts: ts + EPOCH,
            }),
            Self::Origin(lsn, name) => Message::Origin {
                commit_lsn: (*lsn).into(),
                name,
            },
            Self::Relation(oid, namespace, name, replica_identity, columns) => Message::Relation(Relation {
                oid: *oid,
                namespace,
                name,
                replica_identity: *replica_identity,
                columns: columns
                    .iter()
                    .map(|(is_key, name, type_oid, type_modifier)| RelationColumn {
                        is_key: *is_key,
                        name,
                        type_oid: *type_oid,
                        type_modifier: *type_modifier,
                    })
                    .collect(),
            }),
            Self::Type(oid, namespace, name) => Message::Type {
                oid: *oid,
                namespace,
                name,
            },
            Self::Insert(relation, new) => Message::Insert {
                relation: *relation,
                new: cells(new),
            },
            Self::Update(relation, before, new) => Message::Update {
                relation: *relation,
                old: before.as_ref().map(|(is_full, cells)| old(*is_full, cells)),
                new: cells(new),
            },
            Self::Delete(relation, is_full, cells) => Message::Delete {
                relation: *relation,
                old: old(*is_full, cells),
            },
            Self::Truncate(relations, cascade, restart_identity) => Message::Truncate {
                relations: relations.clone(),
                cascade: *cascade,
                restart_identity: *restart_identity,
            },
            Self::Logical(transactional, lsn, prefix, content) => Message::Logical {
                transactional: *transactional,
                lsn: (*lsn).into(),
                prefix,
                content,
            },
        }
    }

    /// As pgoutput writes it (Postgres chapter 55.9).
    fn encode(&self) -> Vec<u8> {
        let mut out = Bytes(Vec::new());
        match self {
            Self::Begin(lsn, ts, xid) => out.tag(b'B').u64(*lsn).u64(ts.cast_unsigned()).u32(*xid),
            Self::Commit(lsn, end, ts) => out.tag(b'C').tag(0).u64(*lsn).u64(*end).u64(ts.cast_unsigned()),
            Self::Origin(lsn, name) => out.tag(b'O').u64(*lsn).text(name),
            Self::Relation(oid, namespace, name, identity, columns) => {
                let identity = match identity {
                    ReplicaIdentity::Default => b'd',
                    ReplicaIdentity::Nothing => b'n',
                    ReplicaIdentity::Full => b'f',
                    ReplicaIdentity::Index => b'i',
                };
                out.tag(b'R').u32(*oid).text(namespace).text(name).tag(identity);
                out.u16(columns.len());
                for (is_key, name, oid, modifier) in columns {
                    out.tag(u8::from(*is_key))
                        .text(name)
                        .u32(*oid)
                        .u32(modifier.cast_unsigned());
                }
                &mut out
            }
            Self::Type(oid, namespace, name) => out.tag(b'Y').u32(*oid).text(namespace).text(name),
            Self::Insert(relation, new) => out.tag(b'I').u32(*relation).tag(b'N').cells(new),
            Self::Update(relation, old, new) => {
                out.tag(b'U').u32(*relation);
                if let Some((is_full, cells)) = old {
                    out.tag(if *is_full { b'O' } else { b'K' }).cells(cells);
                }
                out.tag(b'N').cells(new)
            }
            Self::Delete(relation, is_full, cells) => out
                .tag(b'D')
                .u32(*relation)
                .tag(if *is_full { b'O' } else { b'K' })
                .cells(cells),
            Self::Truncate(relations, cascade, restart) => {
                out.tag(b'T').u32(u32::try_from(relations.len()).unwrap());
                out.tag(u8::from(*cascade) | u8::from(*restart) << 1);
                relations.iter().fold(&mut out, |out, oid| out.u32(*oid))
            }
            Self::Logical(transactional, lsn, prefix, content) => out
                .tag(b'M')
                .tag(u8::from(*transactional))
                .u64(*lsn)
                .text(prefix)
                .value(content),
        };
        out.0
    }
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn tag(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    fn u16(&mut self, number: usize) -> &mut Self {
        self.0.extend(u16::try_from(number).unwrap().to_be_bytes());
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend(text.as_bytes());
        self.tag(0)
    }

    fn value(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap()).0.extend(bytes);
        self
    }

    fn cells(&mut self, cells: &[SaidCell]) -> &mut Self {
        self.u16(cells.len());
        for cell in cells {
            match cell {
                SaidCell::Null => self.tag(b'n'),
                SaidCell::Unchanged => self.tag(b'u'),
                SaidCell::Text(text) => self.tag(b't').value(text),
                SaidCell::Binary(bytes) => self.tag(b'b').value(bytes),
            };
        }
        self
    }
}

fn said() -> impl Strategy<Value = Said> {
    let cell = prop_oneof![
        Just(SaidCell::Null),
        Just(SaidCell::Unchanged),
        any::<Vec<u8>>().prop_map(SaidCell::Text),
        any::<Vec<u8>>().prop_map(SaidCell::Binary),
    ];
    let row = proptest::collection::vec(cell, 0..6);
    let name = "[^\0]{0,12}";
    // Times that the sum with the epoch does not overflow.
    let time = -EPOCH..=i64::MAX - EPOCH;
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let columns = proptest::collection::vec((any::<bool>(), name, any::<u32>(), any::<i32>()), 0..6);
    prop_oneof![
        (any::<u64>(), time.clone(), any::<u32>()).prop_map(|(lsn, ts, xid)| Said::Begin(lsn, ts, xid)),
        (any::<u64>(), any::<u64>(), time).prop_map(|(lsn, end, ts)| Said::Commit(lsn, end, ts)),
        (any::<u64>(), name).prop_map(|(lsn, name)| Said::Origin(lsn, name)),
        (any::<u32>(), name, name, identity, columns).prop_map(|(oid, namespace, name, identity, columns)| {
            Said::Relation(oid, namespace, name, identity, columns)
        }),
        (any::<u32>(), name, name).prop_map(|(oid, namespace, name)| Said::Type(oid, namespace, name)),
        (any::<u32>(), row.clone()).prop_map(|(oid, new)| Said::Insert(oid, new)),
        (
            any::<u32>(),
            proptest::option::of((any::<bool>(), row.clone())),
            row.clone()
        )
            .prop_map(|(oid, old, new)| Said::Update(oid, old, new)),
        (any::<u32>(), any::<bool>(), row).prop_map(|(oid, is_full, old)| Said::Delete(oid, is_full, old)),
        (any::<Vec<u32>>(), any::<bool>(), any::<bool>())
            .prop_map(|(oids, cascade, restart)| Said::Truncate(oids, cascade, restart)),
        (any::<bool>(), any::<u64>(), name, any::<Vec<u8>>())
            .prop_map(|(transactional, lsn, prefix, content)| Said::Logical(transactional, lsn, prefix, content)),
    ]
}

proptest! {
    #[test]
    fn decoder_round_trips_any_message_and_refuses_each_prefix(said in said(), cut in any::<prop::sample::Index>()) {
        let bytes = said.encode();
        prop_assert_eq!(decode(&bytes), Ok(said.message()));
        prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn decoder_random_bytes_do_not_panic(tag in prop::sample::select(&b"BCORYIUDTMX\0"[..]), rest in any::<Vec<u8>>()) {
        let bytes = [&[tag][..], &rest].concat();
        let _ = decode(&bytes);
        let _ = decode(&rest);
    }

    #[test]
    fn decoder_damaged_message_of_a_real_server_does_not_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let messages: Vec<Vec<u8>> = recording().cases.into_iter().flat_map(|(_, messages)| messages).collect();
        let mut message = messages[which.index(messages.len())].clone();
        let at = at.index(message.len());
        message[at] = byte;
        let _ = decode(&message);
    }
}
