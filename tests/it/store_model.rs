//! Every engine against a model that is too simple to be wrong, over random operations.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::model::{Appended, Class, Envelope, ROW_OVERHEAD_BYTES, Usage, View};
use vauchi_relay::store::quota::Quota;

use crate::store_contract::{ENGINES, Engine, HOUR, NOW, Rig, Settings, blob, number};

const MAILBOXES: u8 = 3;
const IDS: u32 = 12;

/// Small, so that every bound is met within a few dozen operations.
const QUOTA: Quota = Quota {
    mailbox_blobs_max: 4,
    mailbox_bytes_max: 4 * ROW_OVERHEAD_BYTES + 150,
    relay_bytes_max: 12 * ROW_OVERHEAD_BYTES,
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
        is_proven_only: bool,
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
    Sweep {
        limit: u32,
    },
    Pass {
        hours: u32,
    },
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let view = prop_oneof![Just(View::V1), Just(View::Proven)];
    let body_bytes = prop_oneof![Just(0_usize), Just(60), Just(100)];
    prop_oneof![
        12 => (0..MAILBOXES, 0..IDS, body_bytes, any::<bool>(), 1..10_u32).prop_map(
            |(mailbox, id, body_bytes, is_proven_only, ttl_hours)| Operation::Append {
                mailbox,
                id,
                body_bytes,
                is_proven_only,
                ttl_hours,
            }
        ),
        4 => (0..MAILBOXES, vec(0..IDS, 0..4))
            .prop_map(|(mailbox, ids)| Operation::Acknowledge { mailbox, ids }),
        1 => (0..MAILBOXES, view).prop_map(|(mailbox, view)| Operation::Purge { mailbox, view }),
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
    expires_at: Timestamp,
}

impl Row {
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
    usage: Usage,
}

impl Model {
    fn new() -> Self {
        Self {
            now: NOW,
            rows: BTreeMap::new(),
            appends: 0,
            departed: HashMap::new(),
            usage: Usage::default(),
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
            let lost = self.remove(|other| other.mailbox == row.mailbox && other.expires_at <= now);
            self.usage.expired += lost;
        }
        if !self.has_room(&row) {
            return Appended::MailboxFull;
        }
        if self.usage.bytes + row.charged_bytes() > QUOTA.relay_bytes_max {
            return Appended::RelayFull;
        }
        let expires_at = row.expires_at;
        self.usage.created += 1;
        self.usage.stored += 1;
        self.usage.bytes += row.charged_bytes();
        self.appends += 1;
        self.rows.insert(self.appends, row);
        Appended::Stored { expires_at }
    }

    fn has_room(&self, row: &Row) -> bool {
        let beside = |other: &&Row| (other.mailbox, other.class) == (row.mailbox, row.class);
        let blobs = self.rows.values().filter(beside).count() as u64;
        let bytes: u64 = self
            .rows
            .values()
            .filter(beside)
            .map(Row::charged_bytes)
            .sum();
        blobs < QUOTA.mailbox_blobs_max && bytes + row.charged_bytes() <= QUOTA.mailbox_bytes_max
    }

    fn remove(&mut self, is_taken: impl Fn(&Row) -> bool) -> u64 {
        let taken: Vec<Row> = self
            .rows
            .extract_if(.., |_, row| is_taken(row))
            .map(|(_, row)| row)
            .collect();
        for row in &taken {
            self.usage.stored -= 1;
            self.usage.bytes -= row.charged_bytes();
            let departed = Departed {
                left_at: self.now,
                body_bytes: row.body_bytes,
                expires_at: row.expires_at,
            };
            self.departed.insert((row.mailbox, row.id), departed);
        }
        taken.len() as u64
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
            is_proven_only,
            ttl_hours,
        } => {
            let row = Row {
                mailbox: *mailbox,
                id: *id,
                body_bytes: *body_bytes,
                class: Class::ALL[usize::from(*is_proven_only)],
                expires_at: model.now.plus(*ttl_hours * HOUR + HOUR / 2),
            };
            let envelope = Envelope {
                class: row.class,
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
            model.usage.acknowledged += removed;
            assert_eq!(rig.acknowledge(*mailbox, ids, model.now).await, removed);
        }
        Operation::Purge { mailbox, view } => {
            let removed = model.remove(|row| row.mailbox == *mailbox && view.shows(row.class));
            model.usage.purged += removed;
            assert_eq!(rig.purge(*mailbox, *view, model.now).await, removed);
        }
        Operation::Sweep { limit } => {
            let now = model.now;
            let removed = model.remove(|row| row.expires_at <= now);
            model.usage.expired += removed;
            assert_eq!(rig.sweep(*limit, now).await, removed);
        }
        Operation::Pass { hours } => model.now = model.now.plus(*hours * HOUR),
        Operation::Reopen if rig.engine.reopens => {
            rig.reopen().await;
            model.usage = Usage {
                stored_at_start: model.usage.stored,
                stored: model.usage.stored,
                bytes: model.usage.bytes,
                ..Usage::default()
            };
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
        assert_eq!(rig.store.usage(), model.usage, "after {operation:?}");
        assert!(model.usage.is_conserved());
    }
    for mailbox in 0..MAILBOXES {
        for view in [View::V1, View::Proven] {
            let blobs = rig.blobs(mailbox, view, model.now).await;
            let blobs: Vec<_> = blobs
                .iter()
                .map(|blob| (number(blob.id), blob.body.len(), blob.expires_at))
                .collect();
            assert_eq!(blobs, model.visible(mailbox, view));
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
