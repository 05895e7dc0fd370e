//! Who is connected to this process, and what waits for each of them.
//!
//! Tens of thousands of readers are silent most of the time, so one costs little while nothing happens: a mailbox
//! without a queue, a place in the list of its user and one in the wheel of heartbeats. No reader has a timer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::contract::group::{GroupId, Membership};
use crate::core::position::StreamId;
use crate::live::tail::{ChangeListener, DeviceChange, Freshness, Notice};

/// Changed devices that may wait for who follows them.
const DEVICE_CHANGES_MAX: usize = 1024;

/// Memberships that may wait until the groups of their user are known.
const MEMBERSHIPS_MAX: usize = 1000;

/// Notices that a reader takes at once.
const TAKE_MAX: usize = 200;

/// Parts of a heartbeat's interval, in each of which so many readers have theirs.
const BEATS: u32 = 100;

/// Whose a mailbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// The user.
    pub user: Uuid,
}

/// What a reader is woken with: first the notices, in order, then the rest.
#[derive(Debug, Default)]
pub struct Signals {
    /// Changes.
    pub notices: VecDeque<Arc<Notice>>,
    /// Others were missed behind them, or history broke: read the streams from the last seen place.
    pub is_gap: bool,
    /// Time to show the client that the server is there.
    pub is_beat: bool,
    /// Nothing will come any more.
    pub is_closed: bool,
}

/// What waits for one reader.
#[derive(Debug)]
struct Mailbox {
    member: Member,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    signals: Signals,
    reader: Option<Waker>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Puts something in and wakes the reader.
    fn put(&self, put: impl FnOnce(&mut Signals)) {
        let mut waiting = self.lock();
        put(&mut waiting.signals);
        if let Some(reader) = waiting.reader.take() {
            reader.wake();
        }
    }

    /// One that does not fit opens a gap. Until the reader has seen that it gets no more, so that nothing comes behind a
    /// hole.
    fn put_notice(&self, notice: &Arc<Notice>, queue_max: usize) {
        self.put(|signals| {
            if signals.is_gap || signals.notices.len() >= queue_max {
                signals.is_gap = true;
            } else {
                signals.notices.push_back(notice.clone());
            }
        });
    }
}

/// Mailboxes by the part of the interval in which their heartbeat is due.
#[derive(Debug, Default)]
struct Wheel {
    parts: Vec<Vec<Weak<Mailbox>>>,
    now: usize,
}

impl Wheel {
    fn new() -> Self {
        Self {
            parts: (0..BEATS).map(|_| Vec::new()).collect(),
            now: 0,
        }
    }

    /// Its first heartbeat comes after a whole interval.
    fn add(&mut self, mailbox: &Arc<Mailbox>) {
        let now = self.now;
        if let Some(part) = self.parts.get_mut(now) {
            part.push(Arc::downgrade(mailbox));
        }
    }

    /// Those whose heartbeat is due next.
    fn turn(&mut self) -> Vec<Arc<Mailbox>> {
        self.now = (self.now + 1) % self.parts.len().max(1);
        let Some(part) = self.parts.get_mut(self.now) else {
            return Vec::new();
        };
        let due: Vec<_> = part.iter().filter_map(Weak::upgrade).collect();
        if due.len() < part.len() {
            *part = due.iter().map(Arc::downgrade).collect();
        }
        due
    }
}

/// The readers of one user.
#[derive(Debug, Default)]
struct OfUser {
    mailboxes: Vec<Arc<Mailbox>>,
    groups: Known,
}

/// The groups of a user who is connected.
#[derive(Debug)]
enum Known {
    /// Not yet.
    Not {
        /// What was read of the streams before this place is too old.
        since: StreamId,
        /// What the live stream says meanwhile.
        later: Vec<(StreamId, Membership)>,
    },
    Groups(HashSet<GroupId>),
}

impl Known {
    fn not_since(since: StreamId) -> Self {
        let later = Vec::new();
        Self::Not { since, later }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self::not_since(StreamId::ZERO)
    }
}

/// The readers of one tenant.
#[derive(Debug, Default)]
struct Readers {
    users: HashMap<Uuid, OfUser>,
    /// Users by group, as far as their groups are known.
    members: HashMap<GroupId, HashSet<Uuid>>,
}

impl Readers {
    /// Applies a membership to what is known of a user. True if too many wait, so that the user must be read again.
    fn apply(&mut self, user: Uuid, id: StreamId, membership: &Membership) -> bool {
        let Some(of_user) = self.users.get_mut(&user) else {
            return false;
        };
        match &mut of_user.groups {
            Known::Not { since, later } if later.len() >= MEMBERSHIPS_MAX => {
                later.clear();
                *since = id;
                return true;
            }
            Known::Not { later, .. } => later.push((id, membership.clone())),
            Known::Groups(groups) => match membership {
                Membership::Join(group) => {
                    groups.insert(group.clone());
                    self.members.entry(group.clone()).or_default().insert(user);
                }
                Membership::Leave(group) => {
                    groups.remove(group);
                    leave(&mut self.members, group, user);
                }
            },
        }
        false
    }

    /// Forgets the groups of all users, as they were before a place.
    fn forget_all(&mut self, before: StreamId) {
        self.members.clear();
        for of_user in self.users.values_mut() {
            of_user.groups = Known::not_since(before);
        }
    }

    /// Forgets a user's groups.
    fn forget(&mut self, user: Uuid) {
        if let Some(of_user) = self.users.get_mut(&user)
            && let Known::Groups(groups) = std::mem::take(&mut of_user.groups)
        {
            for group in &groups {
                leave(&mut self.members, group, user);
            }
        }
    }
}

fn leave(members: &mut HashMap<GroupId, HashSet<Uuid>>, group: &GroupId, user: Uuid) {
    if let Some(users) = members.get_mut(group) {
        users.remove(&user);
        if users.is_empty() {
            members.remove(group);
        }
    }
}

#[derive(Debug, Default)]
struct Subscribers {
    tenants: HashMap<Arc<str>, Readers>,
    /// The process ends.
    is_closed: bool,
}

#[derive(Debug)]
struct Shared {
    seats: Mutex<Subscribers>,
    wheel: Mutex<Wheel>,
    count: AtomicUsize,
    freshness: watch::Sender<Freshness>,
    device_changes: broadcast::Sender<DeviceChange>,
    listeners: ArcSwap<Vec<Arc<dyn ChangeListener>>>,
    queue_max: usize,
}

/// Who is connected here, and how to reach them. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

/// A place in the hub; dropping it leaves.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Arc<Mailbox>,
    hub: Hub,
}

impl Subscription {
    /// Whose it is.
    pub fn member(&self) -> &Member {
        &self.mailbox.member
    }

    /// Whether the groups of the user are known, so that their notices arrive.
    pub fn knows_groups(&self) -> bool {
        self.hub.knows_groups(self.member())
    }

    /// Sets the groups of the user, as they were at a position, unless they are known. Notices of the groups from before are
    /// in the streams only. False if they are not known now, since something happened behind that position that the live
    /// stream does not say.
    pub fn set_groups<'g>(&self, groups: impl Iterator<Item = &'g GroupId>, position: StreamId) -> bool {
        self.hub.set_groups(self.member(), groups, position)
    }

    /// What waits, when something does.
    pub fn poll_signals(&mut self, context: &mut Context<'_>) -> Poll<Signals> {
        let mut waiting = self.mailbox.lock();
        let signals = &mut waiting.signals;
        if signals.notices.len() > TAKE_MAX {
            let rest = signals.notices.split_off(TAKE_MAX);
            return Poll::Ready(Signals {
                notices: std::mem::replace(&mut signals.notices, rest),
                ..Signals::default()
            });
        }
        if !signals.notices.is_empty() || signals.is_gap || signals.is_beat || signals.is_closed {
            // A process that ends does so for good.
            let is_closed = signals.is_closed;
            let taken = std::mem::take(signals);
            signals.is_closed = is_closed;
            return Poll::Ready(taken);
        }
        // The one that is there is nearly always the same.
        match &mut waiting.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Ready when nothing will come any more. What waits is left there.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.mailbox.lock();
        if waiting.signals.is_closed {
            return Poll::Ready(());
        }
        waiting.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// What waits now, if anything does.
    pub fn try_signals(&mut self) -> Option<Signals> {
        match self.poll_signals(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(signals) => Some(signals),
            Poll::Pending => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove(&self.mailbox);
    }
}

impl Hub {
    /// A hub in which up to so many notices wait for each reader.
    pub fn new(queue_max: usize) -> Self {
        Self(Arc::new(Shared {
            seats: Mutex::default(),
            wheel: Mutex::new(Wheel::new()),
            count: AtomicUsize::new(0),
            freshness: watch::Sender::default(),
            device_changes: broadcast::Sender::new(DEVICE_CHANGES_MAX),
            listeners: ArcSwap::default(),
            queue_max,
        }))
    }

    fn seats(&self) -> MutexGuard<'_, Subscribers> {
        self.0.seats.lock()
    }

    fn wheel(&self) -> MutexGuard<'_, Wheel> {
        self.0.wheel.lock()
    }

    /// Registers a reader. What happens from here on waits for it, so register first and then read history.
    pub fn subscribe(&self, tenant: &str, user: Uuid) -> Subscription {
        let mut seats = self.seats();
        let known = seats.tenants.get_key_value(tenant).map(|(known, _)| known.clone());
        let tenant = known.unwrap_or_else(|| tenant.into());
        let mailbox = Arc::new(Mailbox {
            member: Member {
                tenant: tenant.clone(),
                user,
            },
            waiting: Mutex::default(),
        });
        mailbox.lock().signals.is_closed = seats.is_closed;
        let of_user = seats.tenants.entry(tenant).or_default().users.entry(user).or_default();
        // Most users have one stream.
        of_user.mailboxes.reserve_exact(1);
        of_user.mailboxes.push(mailbox.clone());
        drop(seats);
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.wheel().add(&mailbox);
        Subscription {
            mailbox,
            hub: self.clone(),
        }
    }

    fn remove(&self, mailbox: &Arc<Mailbox>) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        let Member { tenant, user } = &mailbox.member;
        let mut seats = self.seats();
        let Some(readers) = seats.tenants.get_mut(tenant) else {
            return;
        };
        if let Some(of_user) = readers.users.get_mut(user) {
            of_user.mailboxes.retain(|other| !Arc::ptr_eq(other, mailbox));
            if of_user.mailboxes.is_empty() {
                readers.forget(*user);
                readers.users.remove(user);
            }
        }
        if readers.users.is_empty() {
            seats.tenants.remove(tenant);
        }
    }

    /// Whether notices have any reader in this process.
    pub(crate) fn has_readers(&self) -> bool {
        self.subscribers() > 0
            || self.0.device_changes.receiver_count() > 0
            || self.listeners().iter().any(|listener| listener.is_active())
    }

    /// Registers a listener, which receives each change before any subscriber does.
    pub fn add_listener(&self, listener: Arc<dyn ChangeListener>) {
        self.0.listeners.rcu(|listeners| {
            let mut listeners = Vec::clone(listeners);
            listeners.push(listener.clone());
            listeners
        });
    }

    pub(crate) fn listeners(&self) -> Arc<Vec<Arc<dyn ChangeListener>>> {
        self.0.listeners.load_full()
    }

    /// Notes whether the live tail is there.
    pub(crate) fn set_connected(&self, is_connected: bool) {
        self.0.freshness.send_if_modified(|freshness| {
            let changes = freshness.is_connected != is_connected;
            freshness.is_connected = is_connected;
            changes
        });
    }

    /// Freshness, as it changes.
    pub fn freshness(&self) -> watch::Receiver<Freshness> {
        self.0.freshness.subscribe()
    }

    pub(crate) fn freshness_sender(&self) -> &watch::Sender<Freshness> {
        &self.0.freshness
    }

    /// Devices that changed, for caches of who may what.
    pub fn device_changes(&self) -> broadcast::Receiver<DeviceChange> {
        self.0.device_changes.subscribe()
    }

    /// Sends a change of devices to those that follow them.
    pub(crate) fn send_device_change(&self, change: DeviceChange) {
        self.0.device_changes.send(change).ok();
    }

    /// Notices that wait for the reader who is furthest behind.
    pub fn longest_queue(&self) -> usize {
        let mut longest = 0;
        self.seats()
            .each(|mailbox| longest = longest.max(mailbox.lock().signals.notices.len()));
        longest
    }

    /// Changes of devices that a receiver has not taken yet.
    pub fn device_changes_waiting(&self) -> usize {
        self.0.device_changes.len()
    }

    /// How many readers there are.
    pub fn subscribers(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Whether the groups of a reader's user are known here.
    fn knows_groups(&self, member: &Member) -> bool {
        let seats = self.seats();
        let readers = seats.tenants.get(&member.tenant);
        let of_user = readers.and_then(|readers| readers.users.get(&member.user));
        of_user.is_some_and(|of_user| matches!(of_user.groups, Known::Groups(_)))
    }

    /// Sets the groups of a reader's user, as they were at a position, unless they are known. Whether they are known now.
    fn set_groups<'g>(&self, member: &Member, groups: impl Iterator<Item = &'g GroupId>, position: StreamId) -> bool {
        let mut seats = self.seats();
        let Some(readers) = seats.tenants.get_mut(&member.tenant) else {
            return false;
        };
        let Some(OfUser { groups: known, .. }) = readers.users.get_mut(&member.user) else {
            return false;
        };
        let later = match known {
            Known::Groups(_) => return true,
            Known::Not { since, .. } if position < *since => return false,
            Known::Not { later, .. } => std::mem::take(later),
        };
        *known = Known::Groups(HashSet::new());
        let groups = groups.cloned().map(|group| (position, Membership::Join(group)));
        let later = later.into_iter().filter(|(id, _)| *id > position);
        for (id, membership) in groups.chain(later) {
            readers.apply(member.user, id, &membership);
        }
        true
    }

    /// Users joined or left a group: from here on its notices reach them, or do not.
    pub(crate) fn change_membership(&self, tenant: &str, users: &[Uuid], id: StreamId, membership: &Membership) {
        let mut seats = self.seats();
        let Some(readers) = seats.tenants.get_mut(tenant) else {
            return;
        };
        for user in users {
            if readers.apply(*user, id, membership)
                && let Some(of_user) = readers.users.get(user)
            {
                of_user
                    .mailboxes
                    .iter()
                    .for_each(|mailbox| mailbox.put(|signals| signals.is_gap = true));
            }
        }
    }

    /// Sends a notice to the readers of these users and groups, or to all of the tenant.
    pub(crate) fn deliver(&self, tenant: &str, users: Option<&[Uuid]>, groups: &[GroupId], notice: Notice) {
        let notice = Arc::new(notice);
        let mut seats = self.seats();
        let Some(readers) = seats.tenants.get_mut(tenant) else {
            return;
        };
        if users.is_none() && notice.op.is_break() {
            // It may have ended memberships that the log does not name.
            readers.forget_all(notice.id);
        }
        let readers = &*readers;
        let send = |of_user: &OfUser| {
            for mailbox in &of_user.mailboxes {
                mailbox.put_notice(&notice, self.0.queue_max);
            }
        };
        let Some(users) = users else {
            return readers.users.values().for_each(send);
        };
        users.iter().filter_map(|user| readers.users.get(user)).for_each(send);
        // A user of several groups receives it several times; the reader recognises that by its place.
        for members in groups.iter().filter_map(|group| readers.members.get(group)) {
            let others = members.iter().filter(|member| !users.contains(member));
            others.filter_map(|user| readers.users.get(user)).for_each(send);
        }
    }

    /// Sends all readers back to the streams: what happened before a place may be missing.
    pub(crate) fn deliver_gap(&self, before: StreamId) {
        for listener in self.listeners().iter() {
            listener.lost();
        }
        self.send_device_change(DeviceChange::Any);
        let mut seats = self.seats();
        for readers in seats.tenants.values_mut() {
            readers.forget_all(before);
        }
        seats.each(|mailbox| mailbox.put(|signals| signals.is_gap = true));
    }

    /// Ends all streams, and those that begin from now on.
    fn close(&self) {
        let mut seats = self.seats();
        seats.is_closed = true;
        seats.each(|mailbox| mailbox.put(|signals| signals.is_closed = true));
    }

    /// Ends the streams of a tenant, which is in another lane now: its readers connect again.
    pub fn close_tenant(&self, tenant: &str) {
        let seats = self.seats();
        let readers = seats.tenants.get(tenant).into_iter();
        for mailbox in readers
            .flat_map(|readers| readers.users.values())
            .flat_map(|user| &user.mailboxes)
        {
            mailbox.put(|signals| signals.is_closed = true);
        }
    }

    /// Gives each reader its heartbeat once an interval until `stop`, when all streams end.
    pub async fn beat(self, interval: Duration, stop: CancellationToken) {
        let beating = async {
            let mut ticks = tokio::time::interval(interval / BEATS);
            loop {
                ticks.tick().await;
                for mailbox in self.wheel().turn() {
                    mailbox.put(|signals| signals.is_beat = true);
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = beating => {}
        }
        self.close();
    }
}

impl Subscribers {
    fn each(&self, mut act: impl FnMut(&Mailbox)) {
        let of_users = self.tenants.values().flat_map(|readers| readers.users.values());
        of_users
            .flat_map(|of_user| &of_user.mailboxes)
            .for_each(|mailbox| act(mailbox));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::notice::LiveEntry;
    use crate::live::tail::receive;

    fn notice(number: u64) -> Notice {
        Notice {
            id: StreamId { ms: number, seq: 1 },
            ..Notice::default()
        }
    }

    fn numbers(signals: &Signals) -> Vec<u64> {
        signals.notices.iter().map(|notice| notice.id.ms).collect()
    }

    #[test]
    fn notices_reach_their_users_and_a_full_queue_opens_a_gap() {
        let hub = Hub::new(2);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut first = hub.subscribe("acme", one);
        let mut page = hub.subscribe("acme", one);
        let mut other = hub.subscribe("acme", two);
        let mut elsewhere = hub.subscribe("globex", one);
        assert_eq!(hub.subscribers(), 4);
        hub.deliver("acme", Some(&[one]), &[], notice(1));
        hub.deliver("acme", None, &[], notice(2));
        assert!(elsewhere.try_signals().is_none());
        assert_eq!(numbers(&other.try_signals().expect("one notice")), [2]);
        assert_eq!(numbers(&page.try_signals().expect("two notices")), [1, 2]);

        // The first has not looked, and two are all that wait for it.
        hub.deliver("acme", Some(&[one]), &[], notice(3));
        hub.deliver("acme", Some(&[one]), &[], notice(4));
        let signals = first.try_signals().expect("signals");
        assert_eq!((numbers(&signals), signals.is_gap), (vec![1, 2], true));
        hub.deliver("acme", Some(&[one]), &[], notice(5));
        let signals = first.try_signals().expect("signals");
        assert_eq!((numbers(&signals), signals.is_gap), (vec![5], false));

        drop((first, page));
        assert_eq!(hub.subscribers(), 2);
        hub.deliver_gap(StreamId::ZERO);
        assert!(other.try_signals().is_some_and(|signals| signals.is_gap));
    }

    #[test]
    fn notices_of_a_group_reach_its_members_from_join_to_leave() {
        let hub = Hub::new(100);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut first = hub.subscribe("acme", one);
        let mut second = hub.subscribe("acme", two);
        let list = |id: &str| format!("list:{id}").parse::<GroupId>().expect("a group");
        let at = |ms| StreamId { ms, seq: 1 };
        let send = |number: u64, id: &str| hub.deliver("acme", Some(&[]), &[list(id)], notice(number));
        let taken = |reader: &mut Subscription| reader.try_signals().map_or(Vec::new(), |signals| numbers(&signals));

        // What happened behind the position at which the groups were read counts, what happened before it does not.
        hub.change_membership("acme", &[one], at(2), &Membership::Leave(list("a")));
        hub.change_membership("acme", &[one], at(4), &Membership::Join(list("b")));
        send(5, "a");
        assert!(!first.knows_groups());
        first.set_groups([list("a")].iter(), at(3));
        second.set_groups([].iter(), at(3));
        assert!(first.knows_groups() && second.knows_groups());
        send(6, "a");
        send(7, "b");
        send(8, "c");
        assert_eq!((taken(&mut first), taken(&mut second)), (vec![6, 7], vec![]));

        hub.change_membership("acme", &[one], at(9), &Membership::Leave(list("a")));
        hub.change_membership("acme", &[two], at(9), &Membership::Join(list("a")));
        send(10, "a");
        assert_eq!((taken(&mut first), taken(&mut second)), (vec![], vec![10]));

        // Behind a gap they are unknown.
        hub.deliver_gap(StreamId::ZERO);
        assert!(!first.knows_groups());
        send(11, "b");
        assert_eq!(taken(&mut first), [0; 0]);
        drop((first, second));
        assert!(hub.seats().tenants.is_empty());
    }

    /// Counts changes, and whether a reader received one before.
    #[derive(Debug, Default)]
    struct Memory {
        reader: Mutex<Option<Subscription>>,
        changed: AtomicUsize,
        lost: AtomicUsize,
        was_late: AtomicUsize,
    }

    impl ChangeListener for Memory {
        fn changed(&self, _tenant: &str, _notice: &Notice, _users: Option<&[Uuid]>) {
            self.changed.fetch_add(1, Ordering::Relaxed);
            let mut reader = self.reader.lock();
            let received = reader.as_mut().and_then(Subscription::try_signals);
            self.was_late
                .fetch_add(usize::from(received.is_some()), Ordering::Relaxed);
        }

        fn lost(&self) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn listener_receives_a_change_before_any_reader() {
        let hub = Hub::new(16);
        let memory = Arc::new(Memory::default());
        hub.add_listener(memory.clone());
        let user = Uuid::from_u128(1);
        *memory.reader.lock() = Some(hub.subscribe("acme", user));
        let notices =
            format!(r#"[["5-1","acme","messages",null,7,0,[["a","insert",["{user}"]],["b","insert",null]]]]"#);
        let entry = LiveEntry {
            notices,
            ..LiveEntry::default()
        };
        receive(&hub, StreamId { ms: 5, seq: 1 }, &entry, &mut None);
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        assert_eq!((count(&memory.changed), count(&memory.was_late)), (2, 0));
        let mut reader = memory.reader.lock();
        let signals = reader.as_mut().and_then(Subscription::try_signals);
        assert_eq!(signals.map(|signals| signals.notices.len()), Some(2));
    }

    #[test]
    fn live_entry_out_of_order_or_of_another_epoch_opens_a_gap() {
        let hub = Hub::new(16);
        let mut reader = hub.subscribe("acme", Uuid::nil());
        let mut last = None;
        let mut take = |ms: u64, prev: &str, epoch: &str| {
            let entry = LiveEntry {
                previous: prev.parse().ok(),
                epoch: epoch.parse().ok(),
                notices: "[]".to_owned(),
                ..LiveEntry::default()
            };
            receive(&hub, StreamId { ms, seq: 1 }, &entry, &mut last);
            reader.try_signals().is_some_and(|signals| signals.is_gap)
        };
        let (one, two) = ("00000000000000aa", "00000000000000bb");
        take(5, "4-1", one);
        assert!(!take(6, "5-1", one));
        assert!(take(8, "7-1", one), "one in between is missing");
        assert!(!take(9, "8-1", one));
        assert!(take(10, "9-1", two), "another epoch");
        assert!(!take(11, "10-1", two));
    }

    #[test]
    fn gap_reaches_listeners_devices_and_readers() {
        let hub = Hub::new(16);
        let memory = Arc::new(Memory::default());
        hub.add_listener(memory.clone());
        let mut devices = hub.device_changes();
        let mut reader = hub.subscribe("acme", Uuid::nil());
        hub.deliver_gap(StreamId::ZERO);
        assert_eq!(memory.lost.load(Ordering::Relaxed), 1);
        assert_eq!(devices.try_recv(), Ok(DeviceChange::Any));
        assert!(reader.try_signals().is_some_and(|signals| signals.is_gap));
    }

    #[test]
    fn each_reader_has_one_heartbeat_an_interval() {
        let hub = Hub::new(16);
        let mut early = hub.subscribe("acme", Uuid::from_u128(1));
        for _ in 0..BEATS / 2 {
            assert!(hub.wheel().turn().is_empty());
        }
        let mut late = hub.subscribe("acme", Uuid::from_u128(2));
        let mut beaten = Vec::new();
        for _ in 0..BEATS {
            for mailbox in hub.wheel().turn() {
                mailbox.put(|signals| signals.is_beat = true);
                beaten.push(mailbox.member.user);
            }
        }
        assert_eq!(beaten, [Uuid::from_u128(1), Uuid::from_u128(2)]);
        assert!(early.try_signals().is_some_and(|signals| signals.is_beat));
        assert!(late.try_signals().is_some_and(|signals| signals.is_beat));
        assert!(late.try_signals().is_none());
        drop(early);
        let due: usize = (0..BEATS).map(|_| hub.wheel().turn().len()).sum();
        assert_eq!(due, 1, "who has left has none");
    }

    #[test]
    fn subscription_after_close_is_closed() {
        let hub = Hub::new(16);
        let mut before = hub.subscribe("acme", Uuid::nil());
        hub.close();
        let mut after = hub.subscribe("acme", Uuid::nil());
        for subscription in [&mut before, &mut after] {
            assert!(subscription.try_signals().is_some_and(|signals| signals.is_closed));
            // It stays so.
            assert!(subscription.try_signals().is_some_and(|signals| signals.is_closed));
        }
    }
}
