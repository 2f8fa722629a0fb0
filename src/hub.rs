//! Which sessions are subscribed to which mailbox here, and how to wake them.
//!
//! A wake carries no blob, only "look": it names the mailbox, coalesces with the wakes before it
//! and so cannot overflow. A hint carries the blob that was just committed, and the key that came
//! before it; a session that stands there delivers it without reading it back, and any other looks. A
//! session joins before its first read and leaves by its connection id, so
//! a late goodbye never removes a newcomer. Notices tell a sender what became of a blob; they live
//! in memory only, and each session holds a bounded number of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::clock::Timestamp;
use crate::ids::{BlobId, ConnectionId, MailboxHash};
use crate::store::engine::NewRow;
use crate::store::model::{OrderKey, StoredBlob};

/// Enough that two cores seldom meet; each shard costs 100 bytes.
const SHARDS: usize = 64;

/// Notices that wait in one session, at the most; what comes beyond is dropped and counted. At 100
/// bytes each that is 25 KiB for a client that does not read.
const NOTICES_MAX: usize = 256;

/// What became of a blob, for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The sender's own name for the submit.
    pub name: Arc<str>,
    /// The blob.
    pub blob: BlobId,
    /// What became of it.
    pub fate: Fate,
}

/// What may become of a blob while its sender is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was written to a recipient's connection.
    Delivered,
    /// A recipient acknowledged it.
    Acknowledged,
}

/// Live blobs that wait in one session, at the most; and their bytes, unless it is a single one.
const LIVE_MAX: usize = 16;
const LIVE_BYTES_MAX: usize = 1 << 20;

/// A blob that is handed on and never stored.
#[derive(Debug, Clone)]
pub struct LiveBlob {
    /// Whose it is.
    pub mailbox: MailboxHash,
    /// Its id.
    pub id: BlobId,
    /// When it was handed in.
    pub handed_at: Timestamp,
    /// The blob.
    pub body: Bytes,
}

/// Hints that wait in one session, at the most; and their bytes. What comes beyond is a mark. 1,000
/// slow readers hold 64 MiB by them.
const HINTS_MAX: usize = 64;
const HINT_BYTES_MAX: usize = 64 << 10;

/// A blob that was just committed.
#[derive(Debug, Clone)]
pub struct Hint {
    /// Whose it is.
    pub mailbox: MailboxHash,
    /// The last key of its mailbox before it: a session that has read so far has read all before it.
    pub previous: OrderKey,
    /// As a page would show it.
    pub blob: StoredBlob,
}

impl Hint {
    /// A copy of the bytes: those of the row may be a small part of a large read buffer.
    fn of(row: &NewRow<'_>) -> Self {
        let blob = row.stored();
        Self {
            mailbox: row.envelope.mailbox,
            previous: row.previous,
            blob: StoredBlob {
                sealed: Bytes::copy_from_slice(&blob.sealed),
                body: Bytes::copy_from_slice(&blob.body),
                ..blob
            },
        }
    }

    fn bytes(&self) -> usize {
        self.blob.sealed.len() + self.blob.body.len()
    }
}

/// What a session has been woken for.
#[derive(Debug)]
pub enum Woken {
    /// By a blob that was just committed.
    Hint(Box<Hint>),
    /// To look into these mailboxes.
    Marks(HashSet<MailboxHash>),
    /// To go back in these mailboxes to before this key: what could not be read there can be read now.
    Back(HashMap<MailboxHash, OrderKey>),
    /// To look into these mailboxes unless they were read up to this key: something was stored of which the
    /// session may not have been told.
    UpTo(HashMap<MailboxHash, OrderKey>),
}

/// What waits for one session: which mailboxes to look at, notices, live blobs. Held by the session and, for
/// each mailbox it joined, by the hub.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Nothing awaits inside.
    wakes: Mutex<Wakes>,
    waker: AtomicWaker,
    /// Bounded by [`NOTICES_MAX`]. Nothing awaits inside.
    notices: Mutex<VecDeque<Notice>>,
    notice_waker: AtomicWaker,
    /// v2 has receipts in place of notices.
    is_without_notices: bool,
    /// Nothing awaits inside.
    live: Mutex<Live>,
    live_waker: AtomicWaker,
}

/// Wakes of one session.
#[derive(Debug, Default)]
struct Wakes {
    /// Mailboxes that have something; bounded by what the session joined.
    marked: HashSet<MailboxHash>,
    /// Of mailboxes that are not marked, or were marked later. Bounded by [`HINTS_MAX`] and
    /// [`HINT_BYTES_MAX`].
    hints: VecDeque<Box<Hint>>,
    hint_bytes: usize,
    /// Where to go back to; bounded by what the session joined.
    back: HashMap<MailboxHash, OrderKey>,
    /// How far there is something; bounded by what the session joined.
    up_to: HashMap<MailboxHash, OrderKey>,
}

impl Wakes {
    fn is_empty(&self) -> bool {
        self.marked.is_empty()
            && self.hints.is_empty()
            && self.back.is_empty()
            && self.up_to.is_empty()
    }

    /// Whether one of so many bytes for this mailbox is of use and has room.
    fn takes_hint(&self, mailbox: &MailboxHash, bytes: usize) -> bool {
        !self.marked.contains(mailbox)
            && self.hints.len() < HINTS_MAX
            && self.hint_bytes + bytes <= HINT_BYTES_MAX
    }

    fn drop_hints(&mut self, mailbox: &MailboxHash) {
        self.hints.retain(|hint| hint.mailbox != *mailbox);
        self.hint_bytes = self.hints.iter().map(|hint| hint.bytes()).sum();
    }
}

/// Live blobs of one session.
#[derive(Debug, Default)]
struct Live {
    /// The mailboxes whose senders are told; bounded by what the session joined.
    from: HashSet<MailboxHash>,
    /// Bounded by [`LIVE_MAX`] and [`LIVE_BYTES_MAX`].
    blobs: VecDeque<LiveBlob>,
    bytes: usize,
}

impl Inbox {
    /// That of a session that takes no notices.
    pub fn without_notices() -> Self {
        Self {
            is_without_notices: true,
            ..Self::default()
        }
    }

    /// Leaves something in the session's wakes, and wakes it when nothing was there.
    fn leave(&self, change: impl FnOnce(&mut Wakes)) {
        let mut wakes = lock(&self.wakes);
        let is_first = wakes.is_empty();
        change(&mut wakes);
        drop(wakes);
        if is_first {
            self.waker.wake();
        }
    }

    /// Hands a committed row to the session, or tells it to look.
    fn bring(&self, row: &NewRow<'_>) {
        let mailbox = row.envelope.mailbox;
        let bytes = row.envelope.sealed.len() + row.envelope.body.len();
        self.leave(|wakes| {
            if wakes.takes_hint(&mailbox, bytes) {
                wakes.hint_bytes += bytes;
                wakes.hints.push_back(Box::new(Hint::of(row)));
            } else {
                wakes.marked.insert(mailbox);
            }
        });
    }

    /// Tells the session to look into this mailbox.
    fn mark(&self, mailbox: MailboxHash) {
        self.leave(|wakes| {
            wakes.marked.insert(mailbox);
        });
    }

    /// Tells the session to look into this mailbox, unless it has read up to this key.
    fn catch_up(&self, mailbox: MailboxHash, key: OrderKey) {
        self.leave(|wakes| {
            let up_to = wakes.up_to.entry(mailbox).or_insert(key);
            *up_to = (*up_to).max(key);
        });
    }

    /// Has the session read this mailbox again from before this key on.
    fn go_back(&self, mailbox: MailboxHash, key: OrderKey) {
        self.leave(|wakes| {
            let back = wakes.back.entry(mailbox).or_insert(key);
            *back = (*back).min(key);
        });
    }

    /// Takes where to go back to, else the next hint, or when there is none the marks that have come since the last call;
    /// pending while there is neither. One task at a time may wait here.
    pub fn poll_take(&self, context: &mut Context<'_>) -> Poll<Woken> {
        self.waker.register(context.waker());
        let mut wakes = lock(&self.wakes);
        if !wakes.back.is_empty() {
            Poll::Ready(Woken::Back(std::mem::take(&mut wakes.back)))
        } else if let Some(hint) = wakes.hints.pop_front() {
            wakes.hint_bytes -= hint.bytes();
            Poll::Ready(Woken::Hint(hint))
        } else if !wakes.marked.is_empty() {
            Poll::Ready(Woken::Marks(std::mem::take(&mut wakes.marked)))
        } else if !wakes.up_to.is_empty() {
            Poll::Ready(Woken::UpTo(std::mem::take(&mut wakes.up_to)))
        } else {
            Poll::Pending
        }
    }

    /// Takes all marks, and hints as marks, that have come since the last call.
    pub fn take_marks(&self) -> HashSet<MailboxHash> {
        let mut waiting = lock(&self.wakes);
        let back = std::mem::take(&mut waiting.back);
        let up_to = std::mem::take(&mut waiting.up_to);
        let wakes = std::mem::take(&mut *waiting);
        waiting.back = back;
        waiting.up_to = up_to;
        drop(waiting);
        let hinted = wakes.hints.iter().map(|hint| hint.mailbox);
        hinted.chain(wakes.marked).collect()
    }

    /// What was committed before now in this mailbox may be gone: it was purged.
    pub fn drop_hints(&self, mailbox: &MailboxHash) {
        lock(&self.wakes).drop_hints(mailbox);
    }

    /// Takes the next notice; pending while there is none. One task at a time may wait here.
    pub fn poll_notice(&self, context: &mut Context<'_>) -> Poll<Notice> {
        self.notice_waker.register(context.waker());
        lock(&self.notices)
            .pop_front()
            .map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether this session takes live blobs of a mailbox that it joined.
    pub fn take_live(&self, mailbox: MailboxHash, takes: bool) {
        let mut live = lock(&self.live);
        match takes {
            true => live.from.insert(mailbox),
            false => live.from.remove(&mailbox),
        };
    }

    /// Whether it does.
    fn takes_live_of(&self, mailbox: &MailboxHash) -> bool {
        lock(&self.live).from.contains(mailbox)
    }

    /// A mailbox that the session has left: its mark would stay for as long as the session is busy,
    /// and a session may join and leave any number. Its live blobs are nobody's.
    pub fn forget(&self, mailbox: &MailboxHash) {
        let mut wakes = lock(&self.wakes);
        wakes.marked.remove(mailbox);
        wakes.back.remove(mailbox);
        wakes.up_to.remove(mailbox);
        wakes.drop_hints(mailbox);
        drop(wakes);
        let mut live = lock(&self.live);
        live.from.remove(mailbox);
        live.blobs.retain(|blob| blob.mailbox != *mailbox);
        live.bytes = live.blobs.iter().map(|blob| blob.body.len()).sum();
    }

    /// Takes the next live blob; pending while there is none. One task at a time may wait here.
    pub fn poll_live(&self, context: &mut Context<'_>) -> Poll<LiveBlob> {
        self.live_waker.register(context.waker());
        let mut live = lock(&self.live);
        let Some(blob) = live.blobs.pop_front() else {
            return Poll::Pending;
        };
        live.bytes -= blob.body.len();
        Poll::Ready(blob)
    }

    /// Whether it was taken.
    fn hand(&self, blob: &LiveBlob) -> bool {
        let mut live = lock(&self.live);
        let bytes = live.bytes + blob.body.len();
        let has_room =
            live.blobs.is_empty() || (live.blobs.len() < LIVE_MAX && bytes <= LIVE_BYTES_MAX);
        if !has_room || !live.from.contains(&blob.mailbox) {
            return false;
        }
        live.bytes = bytes;
        live.blobs.push_back(blob.clone());
        drop(live);
        self.live_waker.wake();
        true
    }

    /// Whether there was room for it, or no wish.
    fn tell(&self, notice: Notice) -> bool {
        if self.is_without_notices {
            return true;
        }
        let mut notices = lock(&self.notices);
        let has_room = notices.len() < NOTICES_MAX;
        if has_room {
            notices.push_back(notice);
        }
        drop(notices);
        self.notice_waker.wake();
        has_room
    }
}

/// One session that has joined a mailbox.
#[derive(Debug)]
struct Subscriber {
    mailbox: MailboxHash,
    connection: ConnectionId,
    inbox: Arc<Inbox>,
}

/// By the prefix of the mailbox, which is all that other relays tell. Two mailboxes do not share one, as good as
/// never.
type Subscribers = HashMap<i64, Vec<Subscriber>>;

/// The subscriptions of this process.
#[derive(Debug)]
pub struct Hub {
    hasher: RandomState,
    /// Nothing awaits inside.
    shards: Vec<Mutex<Subscribers>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Hub {
    /// From now on until the guard is dropped, `inbox` is marked whenever `mailbox` gets something.
    pub fn join(
        self: &Arc<Self>,
        mailbox: MailboxHash,
        connection: ConnectionId,
        inbox: Arc<Inbox>,
    ) -> Joined {
        let prefix64 = mailbox.prefix64();
        self.shard(prefix64)
            .entry(prefix64)
            // Nearly always the only one.
            .or_insert_with(|| Vec::with_capacity(1))
            .push(Subscriber {
                mailbox,
                connection,
                inbox,
            });
        Joined {
            hub: Arc::clone(self),
            mailbox,
            connection,
        }
    }

    /// Tells everyone who joined the mailboxes of these rows, which were just committed: by a hint
    /// where it may be of use.
    pub fn news(&self, rows: &[NewRow<'_>]) {
        for row in rows {
            self.each_of(&row.envelope.mailbox, |inbox| inbox.bring(row));
        }
    }

    /// Tells everyone who joined the mailbox with this prefix to look into it.
    pub fn look(&self, prefix64: i64) {
        self.each(prefix64, |mailbox, inbox| inbox.mark(*mailbox));
    }

    /// Tells everyone who joined the mailbox with this prefix that it has something up to this key: for whoever
    /// has not read so far.
    pub fn catch_up(&self, prefix64: i64, key: OrderKey) {
        self.each(prefix64, |mailbox, inbox| inbox.catch_up(*mailbox, key));
    }

    /// Whether a session takes live blobs of the mailbox with this prefix.
    pub fn takes_live(&self, prefix64: i64) -> bool {
        let mut takes = false;
        self.each(prefix64, |mailbox, inbox| {
            takes |= inbox.takes_live_of(mailbox);
        });
        takes
    }

    /// Has everyone who joined this mailbox read it again from before this key on, whoever has passed it.
    pub fn go_back(&self, mailbox: MailboxHash, key: OrderKey) {
        self.each_of(&mailbox, |inbox| inbox.go_back(mailbox, key));
    }

    /// Tells every session of a sender's mailbox what became of a blob; returns how many had no
    /// room for it.
    pub fn tell(&self, sender: &MailboxHash, notice: &Notice) -> usize {
        self.tell_prefix(sender.prefix64(), notice)
    }

    /// The same, when the sender is known by the prefix of its mailbox alone.
    pub fn tell_prefix(&self, sender64: i64, notice: &Notice) -> usize {
        let mut without_room = 0;
        self.each(sender64, |_, inbox| {
            without_room += usize::from(!inbox.tell(notice.clone()));
        });
        without_room
    }

    /// Hands a live blob to every session that takes it; returns how many did.
    pub fn hand(&self, blob: &LiveBlob) -> usize {
        let mut takers = 0;
        self.each_of(&blob.mailbox, |inbox| {
            takers += usize::from(inbox.hand(blob));
        });
        takers
    }

    /// How many subscriptions there are.
    pub fn count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).values().map(Vec::len).sum::<usize>())
            .sum()
    }

    fn leave(&self, mailbox: &MailboxHash, connection: ConnectionId) {
        let prefix64 = mailbox.prefix64();
        let mut shard = self.shard(prefix64);
        if let Some(subscribers) = shard.get_mut(&prefix64) {
            subscribers.retain(|subscriber| {
                subscriber.connection != connection || subscriber.mailbox != *mailbox
            });
            if subscribers.is_empty() {
                shard.remove(&prefix64);
            }
        }
    }

    /// Everyone who joined this mailbox.
    fn each_of(&self, mailbox: &MailboxHash, mut to: impl FnMut(&Inbox)) {
        self.each(mailbox.prefix64(), |of, inbox| {
            if of == mailbox {
                to(inbox);
            }
        });
    }

    /// Everyone who joined a mailbox with this prefix.
    fn each(&self, prefix64: i64, mut to: impl FnMut(&MailboxHash, &Inbox)) {
        let shard = self.shard(prefix64);
        for subscriber in shard.get(&prefix64).into_iter().flatten() {
            to(&subscriber.mailbox, &subscriber.inbox);
        }
    }

    fn shard(&self, prefix64: i64) -> MutexGuard<'_, Subscribers> {
        let number = self.hasher.hash_one(prefix64) as usize % SHARDS;
        lock(&self.shards[number])
    }
}

/// A subscription; ends when it is dropped.
#[derive(Debug)]
pub struct Joined {
    hub: Arc<Hub>,
    mailbox: MailboxHash,
    connection: ConnectionId,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.leave(&self.mailbox, self.connection);
    }
}

/// The maps stay consistent at every step, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::model::{Class, Envelope};
    use std::task::Waker;

    fn taken(inbox: &Inbox) -> usize {
        match inbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Woken::Marks(marks)) => marks.len(),
            Poll::Ready(Woken::Hint(_) | Woken::Back(_) | Woken::UpTo(_)) => panic!("a hint"),
            Poll::Pending => 0,
        }
    }

    #[test]
    fn wakes_coalesce_and_reach_every_session_of_the_mailbox_only() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (
            MailboxHash::from_bytes([1; 32]),
            MailboxHash::from_bytes([2; 32]),
        );
        let sessions: Vec<Arc<Inbox>> = (0..3).map(|_| Arc::default()).collect();
        let _one = hub.join(a, ConnectionId::next(), Arc::clone(&sessions[0]));
        let _two = hub.join(a, ConnectionId::next(), Arc::clone(&sessions[1]));
        let _three = hub.join(b, ConnectionId::next(), Arc::clone(&sessions[2]));
        wake(&hub);
        wake(&hub);
        assert_eq!(
            sessions
                .iter()
                .map(|inbox| taken(inbox))
                .collect::<Vec<_>>(),
            [1, 1, 0]
        );
        assert_eq!(taken(&sessions[0]), 0, "a mark is taken once");
    }

    fn row<'a>(envelope: &'a Envelope, previous: i64, key: i64) -> NewRow<'a> {
        NewRow {
            key: OrderKey(key),
            previous: OrderKey(previous),
            envelope,
            checksum: &[0; 16],
            expires_at: envelope.expires_at,
            is_delivered_told: false,
        }
    }

    /// Brings a blob that fits into no hint to mailbox 1.
    fn wake(hub: &Hub) {
        hub.news(&[row(&envelope(vec![1; HINT_BYTES_MAX + 1]), 0, 1)]);
    }

    fn envelope(body: Vec<u8>) -> Envelope {
        Envelope {
            mailbox: MailboxHash::from_bytes([1; 32]),
            id: BlobId::from_bytes([1; 16]),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: Timestamp::default(),
            expires_at: Timestamp::from_millis(9),
            sealed: Bytes::new(),
            body: body.into(),
        }
    }

    #[test]
    fn a_session_goes_back_to_the_first_of_what_came_back() {
        let hub = Arc::new(Hub::default());
        let inbox = Arc::new(Inbox::default());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let _joined = hub.join(mailbox, ConnectionId::next(), Arc::clone(&inbox));
        hub.go_back(mailbox, OrderKey(5));
        hub.go_back(mailbox, OrderKey(3));
        hub.go_back(mailbox, OrderKey(4));
        hub.go_back(MailboxHash::from_bytes([2; 32]), OrderKey(1));
        // Looking for marks does not take it.
        assert!(inbox.take_marks().is_empty());
        let context = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Woken::Back(back)) = inbox.poll_take(context) else {
            panic!("it was told");
        };
        assert_eq!(back, HashMap::from([(mailbox, OrderKey(3))]));
        assert!(inbox.poll_take(context).is_pending());
        hub.go_back(mailbox, OrderKey(5));
        inbox.forget(&mailbox);
        assert!(inbox.poll_take(context).is_pending());
    }

    #[test]
    fn hints_come_in_order_and_beyond_their_bound_the_session_is_told_to_look() {
        let hub = Arc::new(Hub::default());
        let inbox = Arc::new(Inbox::default());
        let (small, large) = (envelope(vec![1]), envelope(vec![1; HINT_BYTES_MAX + 1]));
        let mailbox = small.mailbox;
        let _joined = hub.join(mailbox, ConnectionId::next(), Arc::clone(&inbox));
        let context = &mut Context::from_waker(Waker::noop());
        let mut take = || match inbox.poll_take(context) {
            Poll::Ready(Woken::Hint(hint)) => Some((hint.previous.0, hint.blob.key.0)),
            Poll::Ready(Woken::Marks(marks)) => {
                assert!(marks.contains(&mailbox));
                None
            }
            Poll::Ready(Woken::Back(_) | Woken::UpTo(_)) => panic!("nothing came back"),
            Poll::Pending => panic!("nothing"),
        };
        hub.news(&[row(&small, 0, 3), row(&small, 3, 4)]);
        assert_eq!([take(), take()], [Some((0, 3)), Some((3, 4))]);
        // What comes after a mark is read with what came before it.
        hub.news(&[row(&small, 4, 5), row(&large, 5, 6), row(&small, 6, 7)]);
        assert_eq!([take(), take()], [Some((4, 5)), None]);
        assert!(inbox.poll_take(context).is_pending());
        for key in 0..=HINTS_MAX as i64 {
            hub.news(&[row(&small, key, key + 1)]);
        }
        let wakes = lock(&inbox.wakes);
        assert_eq!((wakes.hints.len(), wakes.marked.len()), (HINTS_MAX, 1));
        drop(wakes);
        assert_eq!(inbox.take_marks().len(), 1);
        hub.news(&[row(&small, 8, 9)]);
        inbox.drop_hints(&mailbox);
        assert!(lock(&inbox.wakes).is_empty() && lock(&inbox.wakes).hint_bytes == 0);
    }

    /// A client that kept its window full and opened ever other mailboxes collected their marks.
    #[test]
    fn nothing_of_a_mailbox_that_was_left_stays_in_the_session() {
        let hub = Arc::new(Hub::default());
        let inbox = Arc::new(Inbox::without_notices());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let joined = hub.join(mailbox, ConnectionId::next(), Arc::clone(&inbox));
        inbox.take_live(mailbox, true);
        wake(&hub);
        let handed = hub.hand(&LiveBlob {
            mailbox,
            id: BlobId::from_bytes([9; 16]),
            handed_at: Timestamp::default(),
            body: Bytes::from_static(b"ring"),
        });
        assert_eq!(handed, 1);
        drop(joined);
        inbox.forget(&mailbox);
        assert_eq!(taken(&inbox), 0);
        let live = lock(&inbox.live);
        assert!(live.from.is_empty() && live.blobs.is_empty() && live.bytes == 0);
    }

    #[test]
    fn a_live_blob_goes_to_every_session_that_wants_it_and_has_room() {
        let hub = Arc::new(Hub::default());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let sessions: Vec<Arc<Inbox>> = (0..3).map(|_| Arc::default()).collect();
        let _joined: Vec<_> = sessions
            .iter()
            .map(|inbox| hub.join(mailbox, ConnectionId::next(), Arc::clone(inbox)))
            .collect();
        let live = |bytes: usize| LiveBlob {
            mailbox,
            id: BlobId::from_bytes([9; 16]),
            handed_at: Timestamp::default(),
            body: Bytes::from(vec![0; bytes]),
        };
        assert_eq!(hub.hand(&live(1)), 0, "nobody lets senders know");
        sessions[0].take_live(mailbox, true);
        sessions[1].take_live(mailbox, true);
        assert_eq!(hub.hand(&live(2 * LIVE_BYTES_MAX)), 2, "one, however large");
        assert_eq!(hub.hand(&live(1)), 0, "and nothing beside it");
        let context = &mut Context::from_waker(Waker::noop());
        assert!(sessions[0].poll_live(context).is_ready());
        for _ in 0..LIVE_MAX {
            assert_eq!(hub.hand(&live(1)), 1, "the slow one keeps nobody waiting");
        }
        assert_eq!(hub.hand(&live(1)), 0);
        assert!(sessions[2].poll_live(context).is_pending());
    }

    #[test]
    fn late_goodbye_keeps_the_new_session() {
        let hub = Arc::new(Hub::default());
        let mailbox = MailboxHash::from_bytes([1; 32]);
        let old = hub.join(mailbox, ConnectionId::next(), Arc::default());
        let inbox = Arc::new(Inbox::default());
        let _new = hub.join(mailbox, ConnectionId::next(), Arc::clone(&inbox));
        drop(old);
        wake(&hub);
        assert_eq!((taken(&inbox), hub.count()), (1, 1));
    }

    #[test]
    fn notices_reach_every_session_of_the_sender_and_are_bounded() {
        let hub = Arc::new(Hub::default());
        let sender = MailboxHash::from_bytes([1; 32]);
        let sessions: Vec<Arc<Inbox>> = (0..2).map(|_| Arc::default()).collect();
        let _joined: Vec<_> = sessions
            .iter()
            .map(|inbox| hub.join(sender, ConnectionId::next(), Arc::clone(inbox)))
            .collect();
        let notice = |number: u8| Notice {
            name: "a submit".into(),
            blob: BlobId::from_bytes([number; 16]),
            fate: Fate::Delivered,
        };
        assert_eq!(hub.tell(&sender, &notice(1)), 0);
        for inbox in &sessions {
            let context = &mut Context::from_waker(Waker::noop());
            assert_eq!(inbox.poll_notice(context), Poll::Ready(notice(1)));
            assert_eq!(inbox.poll_notice(context), Poll::Pending);
        }
        for _ in 0..NOTICES_MAX {
            assert_eq!(hub.tell(&sender, &notice(2)), 0);
        }
        assert_eq!(hub.tell(&sender, &notice(3)), 2, "both are full");
    }

    #[test]
    fn nothing_is_left_when_everyone_has_gone() {
        let hub = Arc::new(Hub::default());
        drop(hub.join(
            MailboxHash::from_bytes([1; 32]),
            ConnectionId::next(),
            Arc::default(),
        ));
        assert_eq!(hub.count(), 0);
        assert!(hub.shards.iter().all(|shard| lock(shard).is_empty()));
    }
}
