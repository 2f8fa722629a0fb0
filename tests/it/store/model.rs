//! Every engine against a model that is too simple to be wrong, over random operations.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::Topic;
use vauchi_relay::store::model::{
    Appended, Class, Envelope, Holding, Kept, Opener, Owner, ROW_OVERHEAD_BYTES, ReceiptKind,
    StoredBlob, Tells, Usage, View,
};
use vauchi_relay::store::quota::Quota;

use crate::store::contract::{
    ENGINES, Engine, HOUR, NOW, Rig, Settings, blob, id as id_of, mailbox as hash_of, number,
};
use crate::store::device_sync::backlog;

pub(crate) const MAILBOXES: u8 = 3;
pub(crate) const IDS: u32 = 12;

/// The one blob whose sender asks for receipts, by mailbox and id, and where they go. With more of
/// them it would be the engine's choice which receipt finds the last room.
pub(crate) const ASKS: (u8, u32) = (0, 0);
const RECEIPTS: u8 = 1;
const RECEIPT_BYTES: usize = 25;
const RECEIPT_HOURS: u32 = 7;

/// Small, so that every bound is met within a few dozen operations.
const QUOTA: Quota = Quota {
    mailbox_blobs_max: 4,
    mailbox_bytes_max: 4 * ROW_OVERHEAD_BYTES + 150,
    relay_bytes_max: 12 * ROW_OVERHEAD_BYTES,
    device_sync_blobs_max: 3,
    device_sync_bytes_max: 3 * ROW_OVERHEAD_BYTES + 150,
    ..Quota::UNBOUNDED
};

/// Time passes in whole hours, and this and every time to live end half an hour beside them: engines
/// may sweep in slots of time that are coarser than a millisecond.
const DEDUP: Duration = Duration::from_secs(5 * 3_600 + 1_800);

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Append {
        mailbox: u8,
        id: u32,
        body_bytes: usize,
        class: Class,
        /// Counts for device sync.
        owner: u8,
        topic: Option<u8>,
        ttl_hours: u32,
    },
    Acknowledge {
        mailbox: u8,
        ids: Vec<u32>,
        tells: Tells,
    },
    /// All receipts that are shown.
    AcknowledgeReceipts,
    Delivered {
        mailbox: u8,
        ids: Vec<u32>,
    },
    Extend {
        mailbox: u8,
        id: u32,
        ttl_hours: u32,
    },
    Cancel {
        mailbox: u8,
        id: u32,
    },
    Purge {
        mailbox: u8,
        view: View,
        tells: Tells,
    },
    PurgeOwner {
        owner: u8,
    },
    Sweep {
        limit: u32,
    },
    Pass {
        hours: u32,
    },
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let view = prop_oneof![Just(View::V1), Just(View::Proven), Just(View::DeviceSync)];
    let class = prop_oneof![
        Just(Class::SeenByV1),
        Just(Class::ProvenOnly),
        Just(Class::DeviceSync)
    ];
    let body_bytes = prop_oneof![Just(0_usize), Just(60), Just(100)];
    let topic = prop_oneof![2 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let tells = || prop_oneof![Just(Tells::Senders), Just(Tells::Nobody)];
    // The blob that asks for receipts is a frequent one.
    let name = || prop_oneof![4 => (0..MAILBOXES, 0..IDS), 1 => Just(ASKS)];
    let names = || {
        let some = (0..MAILBOXES, vec(0..IDS, 0..4));
        prop_oneof![3 => some, 1 => Just((ASKS.0, vec![ASKS.1]))]
    };
    prop_oneof![
        12 => (name(), body_bytes, class, 0..2_u8, topic, 1..10_u32).prop_map(
            |((mailbox, id), body_bytes, class, owner, topic, ttl_hours)| Operation::Append {
                mailbox,
                id,
                body_bytes,
                class,
                owner,
                topic,
                ttl_hours,
            }
        ),
        4 => (names(), tells())
            .prop_map(|((mailbox, ids), tells)| Operation::Acknowledge { mailbox, ids, tells }),
        1 => Just(Operation::AcknowledgeReceipts),
        2 => names().prop_map(|(mailbox, ids)| Operation::Delivered { mailbox, ids }),
        2 => (name(), 1..10_u32)
            .prop_map(|((mailbox, id), ttl_hours)| Operation::Extend { mailbox, id, ttl_hours }),
        2 => name().prop_map(|(mailbox, id)| Operation::Cancel { mailbox, id }),
        1 => (0..MAILBOXES, view, tells())
            .prop_map(|(mailbox, view, tells)| Operation::Purge { mailbox, view, tells }),
        1 => (0..2_u8).prop_map(|owner| Operation::PurgeOwner { owner }),
        2 => (1..5_u32).prop_map(|limit| Operation::Sweep { limit }),
        3 => (1..4_u32).prop_map(|hours| Operation::Pass { hours }),
        1 => Just(Operation::Reopen),
    ]
}

#[derive(Debug, Clone)]
struct Row {
    mailbox: u8,
    id: u32,
    body_bytes: usize,
    class: Class,
    /// Of device sync messages; the version is the length of the body.
    owner: Option<u8>,
    topic: Option<u8>,
    is_delivered_told: bool,
    /// Of receipts; the id is the blob's.
    tells: Option<ReceiptKind>,
    expires_at: Timestamp,
}

impl Row {
    /// Whether both count against the same quota.
    fn is_beside(&self, other: &Self) -> bool {
        match self.owner {
            Some(_) => self.owner == other.owner,
            None => (self.mailbox, self.quota()) == (other.mailbox, other.quota()),
        }
    }

    fn quota(&self) -> Class {
        match self.class {
            Class::Receipt => Class::ProvenOnly,
            class => class,
        }
    }

    fn is_blob(&self) -> bool {
        self.owner.is_none() && self.tells.is_none()
    }

    fn asks(&self) -> bool {
        self.is_blob() && (self.mailbox, self.id) == ASKS
    }

    /// Where its coming and going is counted.
    fn kind(&self) -> usize {
        usize::from(self.owner.is_some()) + 2 * usize::from(self.tells.is_some())
    }

    /// Whether it leaves for `other`.
    fn is_replaced_by(&self, other: &Self) -> bool {
        self.is_blob()
            && other.is_blob()
            && self.topic.is_some()
            && (self.mailbox, self.topic) == (other.mailbox, other.topic)
    }

    /// Whether it has to go when `other` finds no room.
    fn makes_room_for(&self, other: &Self) -> bool {
        match other.owner {
            Some(_) => self.owner == other.owner,
            None => self.mailbox == other.mailbox,
        }
    }

    fn charged_bytes(&self) -> u64 {
        self.body_bytes as u64 + ROW_OVERHEAD_BYTES
    }
}

#[derive(Debug, Clone)]
struct Departed {
    left_at: Timestamp,
    body_bytes: usize,
    expires_at: Timestamp,
}

/// The promises in the plainest words: one list of rows, one table of departures, one `Usage`.
struct Model {
    now: Timestamp,
    rows: BTreeMap<u64, Row>,
    appends: u64,
    departed: HashMap<(u8, u32), Departed>,
    /// Of blobs, of device sync, of receipts.
    kept: [Kept; 3],
    receipts_dropped: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            now: NOW,
            rows: BTreeMap::new(),
            appends: 0,
            departed: HashMap::new(),
            kept: [Kept::default(); 3],
            receipts_dropped: 0,
        }
    }

    fn append(&mut self, row: Row) -> Appended {
        let compare = |is_same, expires_at| match is_same {
            true => Appended::Duplicate { expires_at },
            false => Appended::IdReused,
        };
        let kept = |other: &&Row| {
            other.tells.is_none() && (other.mailbox, other.id) == (row.mailbox, row.id)
        };
        if let Some(known) = self.rows.values().find(kept) {
            return compare(known.body_bytes == row.body_bytes, known.expires_at);
        }
        if let Some(known) = self.departed.get(&(row.mailbox, row.id))
            && self.now.since(known.left_at) < DEDUP
        {
            return compare(known.body_bytes == row.body_bytes, known.expires_at);
        }
        if !self.has_room(&row) {
            let now = self.now;
            let lost = self.remove(|other| other.makes_room_for(&row) && other.expires_at <= now);
            self.count(&lost, |kept| &mut kept.expired);
            let appended = self.admit(row);
            self.tell(&lost, Some(ReceiptKind::Expired));
            return appended;
        }
        self.admit(row)
    }

    /// Takes a row in, if there is room without the one that it replaces.
    fn admit(&mut self, row: Row) -> Appended {
        if !self.has_room(&row) {
            return Appended::MailboxFull;
        }
        let stays = |other: &&Row| !other.is_replaced_by(&row);
        let bytes: u64 = self
            .rows
            .values()
            .filter(stays)
            .map(Row::charged_bytes)
            .sum();
        if bytes + row.charged_bytes() > QUOTA.relay_bytes_max {
            return Appended::RelayFull;
        }
        let replaced = self.remove(|other| other.is_replaced_by(&row));
        let expires_at = row.expires_at;
        self.insert(row);
        self.withdrawn(&replaced, |kept| &mut kept.replaced);
        Appended::Stored { expires_at }
    }

    fn insert(&mut self, row: Row) {
        self.count(std::slice::from_ref(&row), |kept| &mut kept.created);
        self.count(std::slice::from_ref(&row), |kept| &mut kept.stored);
        self.appends += 1;
        self.rows.insert(self.appends, row);
    }

    /// Its sender took these away, unless they had expired.
    fn withdrawn(&mut self, rows: &[Row], sum: fn(&mut Kept) -> &mut u64) {
        for row in rows {
            let row = std::slice::from_ref(row);
            if row[0].expires_at <= self.now {
                self.count(row, |kept| &mut kept.expired);
                self.tell(row, Some(ReceiptKind::Expired));
            } else {
                self.count(row, sum);
                self.tell(row, Some(ReceiptKind::Removed));
            }
        }
    }

    /// These were purged, unless they had expired.
    fn purged(&mut self, rows: &[Row], told: Option<ReceiptKind>) {
        for row in rows {
            let row = std::slice::from_ref(row);
            if row[0].expires_at <= self.now {
                self.count(row, |kept| &mut kept.expired);
                self.tell(row, Some(ReceiptKind::Expired));
            } else {
                self.count(row, |kept| &mut kept.purged);
                self.tell(row, told);
            }
        }
    }

    /// Tells the senders of these rows, if anything is told.
    fn tell(&mut self, rows: &[Row], kind: Option<ReceiptKind>) {
        let Some(kind) = kind else {
            return;
        };
        for about in rows.iter().filter(|row| row.asks()) {
            let receipt = Row {
                mailbox: RECEIPTS,
                id: about.id,
                body_bytes: RECEIPT_BYTES,
                class: Class::Receipt,
                owner: None,
                topic: None,
                is_delivered_told: false,
                tells: Some(kind),
                expires_at: self.now.plus(RECEIPT_HOURS * HOUR + HOUR / 2),
            };
            let is_known = self.rows.values().any(|row| row.tells == Some(kind));
            let bytes = self.usage().bytes + receipt.charged_bytes();
            if is_known {
                continue;
            }
            if !self.has_room(&receipt) || bytes > QUOTA.relay_bytes_max {
                self.receipts_dropped += 1;
                continue;
            }
            self.insert(receipt);
        }
    }

    fn has_room(&self, row: &Row) -> bool {
        let beside = |other: &&Row| row.is_beside(other) && !other.is_replaced_by(row);
        let (blobs_max, bytes_max) = match row.owner {
            Some(_) => (QUOTA.device_sync_blobs_max, QUOTA.device_sync_bytes_max),
            None => (QUOTA.mailbox_blobs_max, QUOTA.mailbox_bytes_max),
        };
        let blobs = self.rows.values().filter(beside).count() as u64;
        let bytes: u64 = self
            .rows
            .values()
            .filter(beside)
            .map(Row::charged_bytes)
            .sum();
        blobs < blobs_max && bytes + row.charged_bytes() <= bytes_max
    }

    /// Counts rows of any kind; `sum` is where their coming or going is counted.
    fn count(&mut self, rows: &[Row], sum: fn(&mut Kept) -> &mut u64) {
        for row in rows {
            let kept = &mut self.kept[row.kind()];
            *sum(kept) += 1;
        }
    }

    /// What the store should say.
    fn usage(&self) -> Usage {
        let [blobs, device_sync, receipts] = self.kept;
        Usage {
            stored_at_start: blobs.stored_at_start,
            created: blobs.created,
            acknowledged: blobs.acknowledged,
            cancelled: blobs.cancelled,
            replaced: blobs.replaced,
            purged: blobs.purged,
            expired: blobs.expired,
            stored: blobs.stored,
            device_sync,
            receipts,
            receipts_dropped: self.receipts_dropped,
            bytes: self.rows.values().map(Row::charged_bytes).sum(),
            ..Usage::default()
        }
    }

    fn remove(&mut self, is_taken: impl Fn(&Row) -> bool) -> Vec<Row> {
        let taken: Vec<Row> = self
            .rows
            .extract_if(.., |_, row| is_taken(row))
            .map(|(_, row)| row)
            .collect();
        for row in taken.iter().filter(|row| row.tells.is_none()) {
            let departed = Departed {
                left_at: self.now,
                body_bytes: row.body_bytes,
                expires_at: row.expires_at,
            };
            self.departed.insert((row.mailbox, row.id), departed);
        }
        for row in &taken {
            self.kept[row.kind()].stored -= 1;
        }
        taken
    }

    fn backlog(&self, mailbox: u8) -> Vec<u32> {
        let mut ids = self.visible(mailbox, View::DeviceSync);
        ids.sort_by_key(|shown| shown.body_bytes);
        ids.into_iter().map(|shown| shown.id).collect()
    }

    fn holding(&self, mailbox: u8, view: View) -> Holding {
        let rows = self.rows.values().filter(|row| row.mailbox == mailbox);
        let rows: Vec<_> = rows.filter(|row| view.shows(row.class)).collect();
        Holding {
            pending: self.visible(mailbox, view).len() as u32,
            blobs: rows.len() as u64,
            bytes: rows.into_iter().map(Row::charged_bytes).sum(),
        }
    }

    fn visible(&self, mailbox: u8, view: View) -> Vec<Shown> {
        self.rows
            .values()
            .filter(|row| row.mailbox == mailbox && view.shows(row.class))
            .filter(|row| row.expires_at > self.now)
            .map(|row| Shown {
                id: row.id,
                body_bytes: row.body_bytes,
                expires_at: row.expires_at,
                tells: row.tells,
                asks: row.asks().then_some(row.is_delivered_told),
            })
            .collect()
    }
}

/// What a page shows of a row.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    id: u32,
    body_bytes: usize,
    expires_at: Timestamp,
    tells: Option<ReceiptKind>,
    /// Whether its sender knows of a delivery, when it asks.
    asks: Option<bool>,
}

impl Shown {
    fn new(blob: &StoredBlob) -> Self {
        let receipt = blob.receipt();
        Self {
            id: number(receipt.map_or(blob.id, |receipt| receipt.id)),
            body_bytes: blob.body.len(),
            expires_at: blob.expires_at,
            tells: receipt.map(|receipt| receipt.kind),
            asks: blob.wants_receipts.then_some(blob.is_delivered_told),
        }
    }
}

/// Does the operation on both and compares the answers.
async fn run(operation: &Operation, model: &mut Model, rig: &mut Rig) {
    match operation {
        Operation::Append { .. } | Operation::Extend { .. } | Operation::Cancel { .. } => {
            of_sender(operation, model, rig).await
        }
        Operation::Acknowledge { .. }
        | Operation::AcknowledgeReceipts
        | Operation::Delivered { .. } => of_recipient(operation, model, rig).await,
        Operation::Purge {
            mailbox,
            view,
            tells,
        } => {
            let removed = model.remove(|row| row.mailbox == *mailbox && view.shows(row.class));
            let told = (*tells == Tells::Senders).then_some(ReceiptKind::Removed);
            model.purged(&removed, told);
            let (place, now) = (hash_of(*mailbox), model.now);
            let answer = rig.store.purge(place, *view, *tells, now).await.unwrap();
            let receipts = removed.iter().filter(|row| row.tells.is_some()).count();
            assert_eq!(answer.receipts, receipts as u64);
            assert_eq!(answer.rows(), removed.len() as u64);
        }
        Operation::PurgeOwner { owner } => {
            let removed = model.remove(|row| row.owner == Some(*owner));
            model.purged(&removed, None);
            let purged = rig.store.purge_owner(hash_of(*owner), model.now).await;
            assert_eq!(purged.unwrap().blobs, removed.len() as u64);
        }
        Operation::Sweep { limit } => {
            let now = model.now;
            let removed = model.remove(|row| row.expires_at <= now);
            model.count(&removed, |kept| &mut kept.expired);
            assert_eq!(rig.sweep(*limit, now).await, removed.len() as u64);
            // In which order a sweep takes rows is the engine's choice, and so whether a receipt
            // still meets others that were to go.
            if rig.usage().receipts_dropped > model.receipts_dropped {
                assert!(removed.iter().any(Row::asks));
                model.receipts_dropped += 1;
            } else {
                model.tell(&removed, Some(ReceiptKind::Expired));
            }
        }
        Operation::Pass { hours } => model.now = model.now.plus(*hours * HOUR),
        Operation::Reopen if rig.engine.reopens => {
            rig.reopen().await;
            model.kept = model.kept.map(|kept| Kept {
                stored_at_start: kept.stored,
                stored: kept.stored,
                ..Kept::default()
            });
            model.receipts_dropped = 0;
        }
        Operation::Reopen => (),
    }
}

/// What senders do.
async fn of_sender(operation: &Operation, model: &mut Model, rig: &Rig) {
    match operation {
        Operation::Append {
            mailbox,
            id,
            body_bytes,
            class,
            owner,
            topic,
            ttl_hours,
        } => {
            let row = Row {
                mailbox: *mailbox,
                id: *id,
                body_bytes: *body_bytes,
                class: *class,
                owner: (*class == Class::DeviceSync).then_some(*owner),
                topic: *topic,
                is_delivered_told: false,
                tells: None,
                expires_at: model.now.plus(*ttl_hours * HOUR + HOUR / 2),
            };
            let envelope = Envelope {
                class: row.class,
                owner: row.owner.map(|owner| Owner {
                    hash: hash_of(owner),
                    version: row.body_bytes as u64,
                }),
                topic: row.topic.map(|topic| Topic::from_prefix64(topic.into())),
                receipt_to: ((row.mailbox, row.id) == ASKS).then(|| hash_of(RECEIPTS)),
                stored_at: model.now,
                expires_at: row.expires_at,
                body: Bytes::from(vec![b'x'; row.body_bytes]),
                ..blob(row.mailbox, row.id)
            };
            // An engine may remember a departure until the sweep after its time.
            rig.store.expire(0, model.now).await.unwrap();
            assert_eq!(rig.append(envelope).await, model.append(row));
        }
        Operation::Extend {
            mailbox,
            id,
            ttl_hours,
        } => {
            let expires_at = model.now.plus(*ttl_hours * HOUR + HOUR / 2);
            for row in model.rows.values_mut() {
                let is_it = row.is_blob() && (row.mailbox, row.id) == (*mailbox, *id);
                if is_it && row.expires_at > model.now {
                    row.expires_at = row.expires_at.max(expires_at);
                }
            }
            let (place, id) = (hash_of(*mailbox), id_of(*id));
            let pending = rig.store.extend(place, id, expires_at, model.now).await;
            pending.unwrap().await.unwrap();
        }
        Operation::Cancel { mailbox, id } => {
            let removed =
                model.remove(|row| row.is_blob() && (row.mailbox, row.id) == (*mailbox, *id));
            model.withdrawn(&removed, |kept| &mut kept.cancelled);
            let (place, id) = (hash_of(*mailbox), id_of(*id));
            let pending = rig.store.cancel(place, id, model.now).await;
            pending.unwrap().await.unwrap();
        }
        _ => unreachable!("{operation:?}"),
    }
}

/// What recipients do.
async fn of_recipient(operation: &Operation, model: &mut Model, rig: &Rig) {
    match operation {
        Operation::Acknowledge {
            mailbox,
            ids,
            tells,
        } => {
            let removed = model.remove(|row| {
                let is_named = row.mailbox == *mailbox && ids.contains(&row.id);
                row.tells.is_none() && is_named && View::Proven.shows(row.class)
            });
            model.count(&removed, |kept| &mut kept.acknowledged);
            let told = (*tells == Tells::Senders).then_some(ReceiptKind::Acknowledged);
            model.tell(&removed, told);
            let (place, ids) = (hash_of(*mailbox), ids.iter().copied().map(id_of).collect());
            let pending = rig
                .store
                .acknowledge(
                    place,
                    ids,
                    Opener {
                        view: View::Proven,
                        tells: *tells,
                    },
                    model.now,
                )
                .await;
            let answer = pending.unwrap().await.unwrap();
            assert_eq!((answer.blobs, answer.receipts), (removed.len() as u64, 0));
        }
        Operation::AcknowledgeReceipts => {
            let now = model.now;
            let removed = model.remove(|row| row.tells.is_some() && row.expires_at > now);
            model.count(&removed, |kept| &mut kept.acknowledged);
            let shown = rig.blobs(RECEIPTS, View::Proven, now).await;
            let receipts = shown.iter().filter(|blob| blob.receipt().is_some());
            let ids = receipts.map(|blob| blob.id).collect();
            let place = hash_of(RECEIPTS);
            let pending = rig
                .store
                .acknowledge(
                    place,
                    ids,
                    Opener {
                        view: View::Proven,
                        tells: Tells::Senders,
                    },
                    now,
                )
                .await;
            let answer = pending.unwrap().await.unwrap();
            assert_eq!((answer.blobs, answer.receipts), (0, removed.len() as u64));
        }
        Operation::Delivered { mailbox, ids } => {
            let mut told = Vec::new();
            for row in model.rows.values_mut() {
                let is_new = row.asks() && !row.is_delivered_told;
                if is_new && row.mailbox == *mailbox && ids.contains(&row.id) {
                    row.is_delivered_told = true;
                    told.push(row.clone());
                }
            }
            model.tell(&told, Some(ReceiptKind::Delivered));
            let ids = ids.iter().copied().map(id_of).collect();
            let pending = rig.store.delivered(hash_of(*mailbox), ids, model.now).await;
            pending.unwrap().await.unwrap();
        }
        _ => unreachable!("{operation:?}"),
    }
}

pub(crate) async fn compare(operations: &[Operation], engine: &'static Engine) {
    let settings = Settings {
        quota: QUOTA,
        dedup: DEDUP,
        receipt_ttl: RECEIPT_HOURS * HOUR + HOUR / 2,
        ..Settings::default()
    };
    let mut rig = Rig::open(engine, settings).await;
    let mut model = Model::new();
    for operation in operations {
        run(operation, &mut model, &mut rig).await;
        assert_eq!(rig.store.usage(), model.usage(), "after {operation:?}");
        assert!(model.usage().is_conserved());
    }
    for place in 0..MAILBOXES {
        let (blobs, _) = backlog(&rig, place, 2, model.now).await;
        let blobs: Vec<_> = blobs.iter().map(|blob| number(blob.id)).collect();
        assert_eq!(blobs, model.backlog(place));
        for view in [View::V1, View::Proven, View::DeviceSync] {
            let blobs = rig.blobs(place, view, model.now).await;
            let blobs: Vec<_> = blobs.iter().map(Shown::new).collect();
            assert_eq!(blobs, model.visible(place, view));
            let held = rig.store.holdings(vec![hash_of(place)], view, model.now);
            assert_eq!(held.await.unwrap(), [model.holding(place, view)]);
        }
    }
}

#[test]
fn random_operations_do_what_the_promises_say() {
    for engine in ENGINES {
        // A durable engine waits for its disk at every step.
        let cases = if engine.reopens { 24 } else { 256 };
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let outcome = TestRunner::new(config).run(&vec(operation(), 1..120), |operations| {
            runtime.block_on(compare(&operations, engine));
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{}: {error}", engine.name);
        }
    }
}
