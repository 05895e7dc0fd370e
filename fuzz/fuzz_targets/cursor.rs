//! A cursor: only what was written for this owner is read. The bytes are taken as a cursor's parts, and as its text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::core::position::{EpochId, StreamId, TermId};
use posduif::redis::read_position::ReadPosition;
use posduif::sync::cursor::{Cursor, CursorKey, ID_BYTES_MAX, Owner, PageStart};

fuzz_target!(|bytes: &[u8]| {
    let key = CursorKey::derive("the fuzzer's secret");
    let owner = Owner::Device("phone-1");
    let text = String::from_utf8_lossy(bytes);
    assert!(key.decode("acme", owner, &text).is_err());

    let Some((numbers, id)) = bytes.split_first_chunk::<74>() else {
        return;
    };
    let number = |index: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&numbers[2 + index * 8..][..8]);
        u64::from_be_bytes(eight)
    };
    let id = String::from_utf8_lossy(id);
    let id: String = id.chars().take(ID_BYTES_MAX / 4).collect();
    let cursor = Cursor {
        place: ReadPosition {
            epoch: EpochId(number(0)),
            generation: number(1).cast_signed(),
            term: TermId(number(5)),
            position: StreamId {
                ms: number(2),
                seq: number(3),
            },
            resets_covered: (numbers[0] & 2 == 2).then(|| StreamId {
                ms: number(7),
                seq: number(8),
            }),
            is_incomplete: numbers[0] & 6 == 6,
        },
        page: (numbers[0] % 2 == 1).then(|| PageStart {
            phase: numbers[1],
            rule: number(6),
            created_at: number(4).cast_signed(),
            id,
        }),
    };
    let text = key.encode("acme", owner, &cursor);
    assert_eq!(key.decode("acme", owner, &text), Ok(cursor));
    assert!(key.decode("acme", Owner::Device("phone-2"), &text).is_err());
    assert!(key.decode("acm", owner, &text).is_err());
    assert!(key.decode("acme", owner, &text[..text.len() - 1]).is_err());
});
