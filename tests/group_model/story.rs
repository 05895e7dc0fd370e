//! What may happen in a story.

use proptest::prelude::*;

use super::lapse::Act;
use crate::support::story::Pick;
use crate::support::unreliable::{Fate, fates};

/// A table with rows that move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Tasks,
    Notes,
    Messages,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Tasks, Self::Notes, Self::Messages];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Notes => "notes",
            Self::Messages => "messages",
        }
    }

    /// The column with the text.
    pub(super) fn text(self) -> &'static str {
        if self == Self::Messages { "content" } else { "body" }
    }
}

/// Who is to see a row: lists, teams, users, everybody, or several of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) how: Pick,
    pub(super) list: Pick,
    pub(super) team: Pick,
    pub(super) user: Pick,
}

/// Something that another client does, `psql`.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Join {
        group: Pick,
        user: Pick,
    },
    Leave {
        group: Pick,
        user: Pick,
    },
    /// The end of a membership that stays as a row.
    SoftLeave {
        group: Pick,
        user: Pick,
    },
    /// The membership becomes one of another group.
    MoveMember {
        group: Pick,
        user: Pick,
        to: Pick,
    },
    /// The membership becomes one of another user.
    GiveMember {
        group: Pick,
        user: Pick,
        to: Pick,
    },
    /// Out and in again.
    Rejoin {
        group: Pick,
        user: Pick,
    },
    TruncateMembers {
        kind: Pick,
    },
    List {
        list: Pick,
        is_gone: bool,
    },
    New {
        table: Table,
        place: Place,
    },
    Edit {
        table: Table,
        row: Pick,
    },
    Put {
        table: Table,
        row: Pick,
        place: Place,
    },
    Delete {
        table: Table,
        row: Pick,
    },
    SoftDelete {
        table: Table,
        row: Pick,
        is_back: bool,
    },
    /// Deleted, and created with the same id.
    Again {
        table: Table,
        row: Pick,
        place: Place,
    },
    /// The row gets another id.
    Rename {
        table: Table,
        row: Pick,
    },
    TruncateNotes,
}

/// Something that happens. Picks choose among what there is then.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Commit {
        changes: Vec<Change>,
        commits: bool,
    },
    /// A user is out of a group for some commits.
    Absence {
        group: Pick,
        user: Pick,
        changes: Vec<Change>,
    },
    BobSends {
        place: Place,
    },
    BobEdits {
        row: Pick,
    },
    BobDeletes {
        row: Pick,
    },
    BobReads {
        row: Pick,
    },
    PhoneAdds {
        phone: Pick,
        table: Table,
        place: Place,
    },
    PhoneEdits {
        phone: Pick,
        table: Table,
        row: Pick,
        times: u8,
    },
    PhonePuts {
        phone: Pick,
        table: Table,
        row: Pick,
        place: Place,
    },
    PhoneDeletes {
        phone: Pick,
        table: Table,
        row: Pick,
    },
    PhoneReads {
        phone: Pick,
        row: Pick,
    },
    /// Both phones of one user change a row before they upload.
    Quarrel {
        table: Table,
        row: Pick,
        times: u8,
        fates: Vec<Fate>,
    },
    /// The answer of an upload is lost, and the row and the user's memberships change.
    Lapse {
        phone: Pick,
        deed: (Table, Act, Pick, Place),
        changes: Vec<Change>,
        fates: Vec<Fate>,
    },
    /// A phone goes back to before an upload, and then the row and the user's memberships change.
    Relapse {
        phone: Pick,
        deed: (Table, Act, Pick, Place),
        changes: Vec<Change>,
    },
    Sync {
        phone: Pick,
        fates: Vec<Fate>,
    },
    Upload {
        phone: Pick,
        fates: Vec<Fate>,
    },
    Fetch {
        phone: Pick,
        fates: Vec<Fate>,
    },
    /// Something is committed behind each page.
    Slowly {
        phone: Pick,
        changes: Vec<Change>,
    },
    /// A request that lingered arrives.
    Late {
        phone: Pick,
    },
    /// The phone's file is copied.
    Save {
        phone: Pick,
    },
    /// The copy takes the file's place.
    GoBack {
        phone: Pick,
    },
    /// All that is committed reaches the streams.
    Publish,
    /// A stream of a group or of a user forgets all but its last entries.
    Trim {
        stream: Pick,
        keep: u8,
    },
    /// A key of the tenant is lost.
    Lose {
        what: Pick,
        which: Pick,
    },
    Resync,
    /// The tenant's delivery is paused, or goes on.
    Pause,
    /// Redis loses the checkpoint.
    BreakHistory,
    /// The engine starts again, perhaps by other rules.
    Restart {
        rules: Option<u8>,
    },
}

fn pick() -> impl Strategy<Value = Pick> {
    any::<u8>().prop_map(Pick as fn(u8) -> Pick)
}

fn table() -> impl Strategy<Value = Table> {
    prop_oneof![3 => Just(Table::Tasks), 2 => Just(Table::Notes), 3 => Just(Table::Messages)]
}

fn place() -> impl Strategy<Value = Place> {
    (pick(), pick(), pick(), pick()).prop_map(|(how, list, team, user)| Place { how, list, team, user })
}

fn change() -> impl Strategy<Value = Change> {
    use Change::*;
    let i = pick;
    let memberships = prop_oneof![
        6 => (i(), i()).prop_map(|(group, user)| Join { group, user }),
        4 => (i(), i()).prop_map(|(group, user)| Leave { group, user }),
        2 => (i(), i()).prop_map(|(group, user)| SoftLeave { group, user }),
        2 => (i(), i(), i()).prop_map(|(group, user, to)| MoveMember { group, user, to }),
        2 => (i(), i(), i()).prop_map(|(group, user, to)| GiveMember { group, user, to }),
        2 => (i(), i()).prop_map(|(group, user)| Rejoin { group, user }),
        1 => i().prop_map(|kind| TruncateMembers { kind }),
    ];
    let rows = prop_oneof![
        2 => (i(), prop::bool::weighted(0.3)).prop_map(|(list, is_gone)| List { list, is_gone }),
        5 => (table(), place()).prop_map(|(table, place)| New { table, place }),
        4 => (table(), i()).prop_map(|(table, row)| Edit { table, row }),
        6 => (table(), i(), place()).prop_map(|(table, row, place)| Put { table, row, place }),
        2 => (table(), i()).prop_map(|(table, row)| Delete { table, row }),
        2 => (table(), i(), any::<bool>()).prop_map(|(table, row, is_back)| SoftDelete { table, row, is_back }),
        2 => (table(), i(), place()).prop_map(|(table, row, place)| Again { table, row, place }),
        1 => (table(), i()).prop_map(|(table, row)| Rename { table, row }),
    ];
    prop_oneof![20 => memberships, 24 => rows, 1 => Just(TruncateNotes)]
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 1..=most)
}

fn deed() -> impl Strategy<Value = (Table, Act, Pick, Place)> {
    let act = prop_oneof![3 => Just(Act::Edit), 2 => Just(Act::Put), 1 => Just(Act::Delete), 2 => Just(Act::Add)];
    (table(), act, pick(), place())
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let i = pick;
    let commits = prop_oneof![
        8 => (changes(4), prop::bool::weighted(0.93)).prop_map(|(changes, commits)| Commit { changes, commits }),
        3 => (i(), i(), changes(3)).prop_map(|(group, user, changes)| Absence { group, user, changes }),
    ];
    let by_bob = prop_oneof![
        3 => place().prop_map(|place| BobSends { place }),
        1 => i().prop_map(|row| BobEdits { row }),
        1 => i().prop_map(|row| BobDeletes { row }),
        1 => i().prop_map(|row| BobReads { row }),
    ];
    let by_phone = prop_oneof![
        5 => (i(), table(), place()).prop_map(|(phone, table, place)| PhoneAdds { phone, table, place }),
        5 => (i(), table(), i(), 1..4_u8).prop_map(|(phone, table, row, times)| PhoneEdits { phone, table, row, times }),
        3 => (i(), table(), i(), place()).prop_map(|(phone, table, row, place)| PhonePuts { phone, table, row, place }),
        2 => (i(), table(), i()).prop_map(|(phone, table, row)| PhoneDeletes { phone, table, row }),
        3 => (i(), i()).prop_map(|(phone, row)| PhoneReads { phone, row }),
        2 => (table(), i(), 1..4_u8, fates())
            .prop_map(|(table, row, times, fates)| Quarrel { table, row, times, fates }),
    ];
    let lapses = prop_oneof![
        4 => (i(), deed(), changes(4), fates())
            .prop_map(|(phone, deed, changes, fates)| Lapse { phone, deed, changes, fates }),
        1 => (i(), deed(), changes(3)).prop_map(|(phone, deed, changes)| Relapse { phone, deed, changes }),
    ];
    let on_the_way = prop_oneof![
        6 => (i(), fates()).prop_map(|(phone, fates)| Sync { phone, fates }),
        3 => (i(), fates()).prop_map(|(phone, fates)| Upload { phone, fates }),
        5 => (i(), fates()).prop_map(|(phone, fates)| Fetch { phone, fates }),
        3 => (i(), changes(4)).prop_map(|(phone, changes)| Slowly { phone, changes }),
        1 => i().prop_map(|phone| Late { phone }),
        3 => Just(Publish),
    ];
    let mishaps = prop_oneof![
        3 => i().prop_map(|phone| Save { phone }),
        3 => i().prop_map(|phone| GoBack { phone }),
        3 => (i(), 0..4_u8).prop_map(|(stream, keep)| Trim { stream, keep }),
        2 => (i(), i()).prop_map(|(what, which)| Lose { what, which }),
        1 => Just(Resync),
        1 => Just(Pause),
    ];
    prop_oneof![8 => commits, 2 => by_bob, 6 => by_phone, 5 => lapses, 9 => on_the_way, 3 => mishaps]
}

/// A story. Some, by their number, have what shakes everybody: each run must have it, and not too often.
pub(super) fn story(number: usize) -> impl Strategy<Value = Vec<Op>> {
    let ops = || proptest::collection::vec(op(), 8..22);
    (ops(), ops(), any::<u8>()).prop_map(move |(mut first, second, rules)| {
        match number % 100 {
            16 | 67 => first.push(Op::BreakHistory),
            42 => first.push(Op::Restart { rules: None }),
            8 | 33 | 58 | 83 => first.push(Op::Restart { rules: Some(rules) }),
            _ => {}
        }
        first.extend(second);
        first
    })
}
