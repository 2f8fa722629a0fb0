//! Every engine against a model that is too simple to be wrong, over random operations.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::model::{
    Appended, Class, Envelope, Kept, Owner, ROW_OVERHEAD_BYTES, Usage, View,
};
use vauchi_relay::store::quota::Quota;

use crate::store_contract::{
    ENGINES, Engine, HOUR, NOW, Rig, Settings, blob, mailbox as hash_of, number,
};
use crate::store_device_sync::backlog;

const MAILBOXES: u8 = 3;
const IDS: u32 = 12;

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
enum Operation {
    Append {
        mailbox: u8,
        id: u32,
        body_bytes: usize,
        class: Class,
        /// Counts for device sync.
        owner: u8,
        ttl_hours: u32,
    },
    Acknowledge {
        mailbox: u8,
        ids: Vec<u32>,
    },
    Purge {
        mailbox: u8,
        view: View,
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
    prop_oneof![
        12 => (0..MAILBOXES, 0..IDS, body_bytes, class, 0..2_u8, 1..10_u32).prop_map(
            |(mailbox, id, body_bytes, class, owner, ttl_hours)| Operation::Append {
                mailbox,
                id,
                body_bytes,
                class,
                owner,
                ttl_hours,
            }
        ),
        4 => (0..MAILBOXES, vec(0..IDS, 0..4))
            .prop_map(|(mailbox, ids)| Operation::Acknowledge { mailbox, ids }),
        1 => (0..MAILBOXES, view).prop_map(|(mailbox, view)| Operation::Purge { mailbox, view }),
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
    expires_at: Timestamp,
}

impl Row {
    /// Whether both count against the same quota.
    fn is_beside(&self, other: &Self) -> bool {
        match self.owner {
            Some(_) => self.owner == other.owner,
            None => (self.mailbox, self.class) == (other.mailbox, other.class),
        }
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
    /// Of blobs and of device sync.
    kept: [Kept; 2],
}

impl Model {
    fn new() -> Self {
        Self {
            now: NOW,
            rows: BTreeMap::new(),
            appends: 0,
            departed: HashMap::new(),
            kept: [Kept::default(); 2],
        }
    }

    fn append(&mut self, row: Row) -> Appended {
        let compare = |is_same, expires_at| match is_same {
            true => Appended::Duplicate { expires_at },
            false => Appended::IdReused,
        };
        let kept = |other: &&Row| (other.mailbox, other.id) == (row.mailbox, row.id);
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
        }
        if !self.has_room(&row) {
            return Appended::MailboxFull;
        }
        if self.usage().bytes + row.charged_bytes() > QUOTA.relay_bytes_max {
            return Appended::RelayFull;
        }
        let expires_at = row.expires_at;
        self.count(std::slice::from_ref(&row), |kept| &mut kept.created);
        self.count(std::slice::from_ref(&row), |kept| &mut kept.stored);
        self.appends += 1;
        self.rows.insert(self.appends, row);
        Appended::Stored { expires_at }
    }

    fn has_room(&self, row: &Row) -> bool {
        let beside = |other: &&Row| row.is_beside(other);
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

    /// Counts rows of either kind; `sum` is where their coming or going is counted.
    fn count(&mut self, rows: &[Row], sum: fn(&mut Kept) -> &mut u64) {
        for row in rows {
            let kept = &mut self.kept[usize::from(row.owner.is_some())];
            *sum(kept) += 1;
        }
    }

    /// What the store should say.
    fn usage(&self) -> Usage {
        let [blobs, device_sync] = self.kept;
        Usage {
            stored_at_start: blobs.stored_at_start,
            created: blobs.created,
            acknowledged: blobs.acknowledged,
            purged: blobs.purged,
            expired: blobs.expired,
            stored: blobs.stored,
            device_sync,
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
        for row in &taken {
            let departed = Departed {
                left_at: self.now,
                body_bytes: row.body_bytes,
                expires_at: row.expires_at,
            };
            self.departed.insert((row.mailbox, row.id), departed);
        }
        for row in &taken {
            self.kept[usize::from(row.owner.is_some())].stored -= 1;
        }
        taken
    }

    fn backlog(&self, mailbox: u8) -> Vec<u32> {
        let mut ids = self.visible(mailbox, View::DeviceSync);
        ids.sort_by_key(|(_, body_bytes, _)| *body_bytes);
        ids.into_iter().map(|(id, ..)| id).collect()
    }

    fn visible(&self, mailbox: u8, view: View) -> Vec<(u32, usize, Timestamp)> {
        self.rows
            .values()
            .filter(|row| row.mailbox == mailbox && view.shows(row.class))
            .filter(|row| row.expires_at > self.now)
            .map(|row| (row.id, row.body_bytes, row.expires_at))
            .collect()
    }
}

/// Does the operation on both and compares the answers.
async fn run(operation: &Operation, model: &mut Model, rig: &mut Rig) {
    match operation {
        Operation::Append {
            mailbox,
            id,
            body_bytes,
            class,
            owner,
            ttl_hours,
        } => {
            let row = Row {
                mailbox: *mailbox,
                id: *id,
                body_bytes: *body_bytes,
                class: *class,
                owner: (*class == Class::DeviceSync).then_some(*owner),
                expires_at: model.now.plus(*ttl_hours * HOUR + HOUR / 2),
            };
            let envelope = Envelope {
                class: row.class,
                owner: row.owner.map(|owner| Owner {
                    hash: hash_of(owner),
                    version: row.body_bytes as u64,
                }),
                stored_at: model.now,
                expires_at: row.expires_at,
                body: Bytes::from(vec![b'x'; row.body_bytes]),
                ..blob(row.mailbox, row.id)
            };
            // An engine may remember a departure until the sweep after its time.
            rig.store.expire(0, model.now).await.unwrap();
            assert_eq!(rig.append(envelope).await, model.append(row));
        }
        Operation::Acknowledge { mailbox, ids } => {
            let removed = model.remove(|row| row.mailbox == *mailbox && ids.contains(&row.id));
            model.count(&removed, |kept| &mut kept.acknowledged);
            assert_eq!(
                rig.acknowledge(*mailbox, ids, model.now).await,
                removed.len() as u64
            );
        }
        Operation::Purge { mailbox, view } => {
            let removed = model.remove(|row| row.mailbox == *mailbox && view.shows(row.class));
            model.count(&removed, |kept| &mut kept.purged);
            assert_eq!(
                rig.purge(*mailbox, *view, model.now).await,
                removed.len() as u64
            );
        }
        Operation::PurgeOwner { owner } => {
            let removed = model.remove(|row| row.owner == Some(*owner));
            model.count(&removed, |kept| &mut kept.purged);
            let purged = rig.store.purge_owner(hash_of(*owner), model.now).await;
            assert_eq!(purged.unwrap().blobs, removed.len() as u64);
        }
        Operation::Sweep { limit } => {
            let now = model.now;
            let removed = model.remove(|row| row.expires_at <= now);
            model.count(&removed, |kept| &mut kept.expired);
            assert_eq!(rig.sweep(*limit, now).await, removed.len() as u64);
        }
        Operation::Pass { hours } => model.now = model.now.plus(*hours * HOUR),
        Operation::Reopen if rig.engine.reopens => {
            rig.reopen().await;
            model.kept = model.kept.map(|kept| Kept {
                stored_at_start: kept.stored,
                stored: kept.stored,
                ..Kept::default()
            });
        }
        Operation::Reopen => (),
    }
}

async fn compare(operations: &[Operation], engine: &'static Engine) {
    let settings = Settings {
        quota: QUOTA,
        dedup: DEDUP,
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
            let blobs: Vec<_> = blobs
                .iter()
                .map(|blob| (number(blob.id), blob.body.len(), blob.expires_at))
                .collect();
            assert_eq!(blobs, model.visible(place, view));
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
