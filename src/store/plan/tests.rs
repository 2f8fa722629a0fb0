//! Folding batches, against rows in memory and against a model of the promises.

use std::time::Duration;

use proptest::prelude::*;

use super::known::{Departed, RELIEF_ROWS_MAX};
use super::*;
use crate::ids::BlobId;
use crate::store::model::{Appended, Opener, Tells, View};
use crate::store::write::Cause;

/// Rows in memory and everything that a plan needs, instead of a database.
struct Engine {
    rules: Rules,
    departed: HashMap<Name, Departed>,
    rows: HashMap<OrderKey, Header>,
    next_key: i64,
    held: HeldInAll,
    has_room: bool,
}

impl Engine {
    fn new(mailbox_blobs_max: u64) -> Self {
        Self {
            rules: Rules {
                secret: Secret::from_bytes([1; 32]),
                quota: Quota {
                    mailbox_blobs_max,
                    ..Quota::UNBOUNDED
                },
                dedup: Duration::from_millis(1000),
                receipt_ttl: Duration::from_millis(2_000),
                clock: crate::clock::Clock::manual(Timestamp::default()).0,
            },
            departed: HashMap::default(),
            rows: HashMap::default(),
            next_key: 1,
            held: HeldInAll::default(),
            has_room: true,
        }
    }

    fn run(&mut self, batch: &[Write]) -> Plan {
        let batch: Vec<_> = batch.iter().collect();
        let mut learnt = Learnt::default();
        let mut asked = Asked::about(&batch);
        let plan = loop {
            let answer = self.answer(&asked);
            learnt.learn(asked, answer);
            match fold(&batch, &self.rules, &learnt) {
                Folded::Plan(plan) => break plan,
                Folded::Asks(more) => asked = *more,
            }
        };
        self.apply(&batch, &plan);
        *plan
    }

    fn answer(&self, asked: &Asked) -> Known {
        let mut known = Known {
            next_key: self.next_key,
            held: self.held,
            has_room: self.has_room,
            ..Known::default()
        };
        let is_asked = |key: &OrderKey, row: &Header| {
            let topic = row.topic.map(|topic| (row.mailbox, topic));
            asked.names.contains(&row.name())
                || asked.keys.contains(key)
                || topic.is_some_and(|topic| asked.topics.contains(&topic))
        };
        for (key, row) in self.rows.iter().filter(|(key, row)| is_asked(key, row)) {
            known.rows.insert(*key, *row);
        }
        for name in &asked.departed {
            let departed = self.departed.get(name);
            known
                .departed
                .extend(departed.map(|departed| (*name, *departed)));
        }
        for holder in &asked.holders {
            let rows: Vec<_> = self.rows_of(holder).collect();
            let account = Account::of(rows.iter().map(|(key, row)| (*key, row)));
            known.accounts.insert(*holder, account);
        }
        for (holder, now) in &asked.expired {
            let mut expired: Vec<_> = self.rows_of(holder).collect();
            expired.retain(|(_, row)| row.expires_at <= *now);
            expired.sort_unstable_by_key(|(key, _)| *key);
            expired.truncate(RELIEF_ROWS_MAX);
            let keys = expired.iter().map(|(key, _)| *key).collect();
            known.expired.insert(*holder, keys);
            known.rows.extend(expired);
        }
        known
    }

    fn rows_of(&self, holder: &Holder) -> impl Iterator<Item = (OrderKey, Header)> {
        let Holder::Mailbox(mailbox) = *holder else {
            panic!("no device sync here");
        };
        let rows = self.rows.iter().map(|(key, row)| (*key, *row));
        rows.filter(move |(_, row)| row.mailbox == mailbox)
    }

    fn apply(&mut self, batch: &[&Write], plan: &Plan) {
        let mut last_key = OrderKey(self.next_key - 1);
        for row in plan.new_rows(batch) {
            assert!(row.key > last_key, "out of order");
            assert!(row.previous < row.key);
            last_key = row.key;
            assert!(
                self.rows.insert(row.key, row.header()).is_none(),
                "a key twice"
            );
        }
        for (key, header) in plan.deletes.iter().chain(&plan.set_aside) {
            let row = self.rows.remove(key).expect("deleted what is not there");
            assert_eq!(row.name(), header.name());
        }
        for (key, (_, expires_at)) in &plan.extended {
            let row = self.rows.get_mut(key).expect("extended what is not there");
            assert!(row.expires_at < *expires_at);
            row.expires_at = *expires_at;
        }
        for key in plan.delivered.keys() {
            let row = self.rows.get_mut(key).expect("marked what is not there");
            row.is_delivered_told = true;
        }
        for departure in &plan.departures {
            let name = (departure.mailbox, departure.id);
            self.departed.insert(name, departure.departed);
        }
        self.next_key = plan.next_key;
        self.held = plan.change.applied_to(self.held);
        let held = self.held.blobs + self.held.receipts;
        assert_eq!(held, self.rows.len() as u64);
        let bytes: u64 = self.rows.values().map(Header::charged_bytes).sum();
        assert_eq!(self.held.bytes, bytes);
    }
}

fn mailbox(number: u8) -> MailboxHash {
    MailboxHash::from_bytes([number; 32])
}

fn blob(number: u8) -> BlobId {
    BlobId::from_bytes([number; 16])
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn append(to: u8, id: u8, checksum: u8, now: u64) -> Write {
    Write::Append {
        envelope: Envelope {
            mailbox: mailbox(to),
            id: blob(id),
            class: Class::SeenByV1,
            owner: None,
            topic: None,
            receipt_to: None,
            stored_at: at(now),
            expires_at: at(now + 500),
            sealed: bytes::Bytes::new(),
            body: bytes::Bytes::from_static(b"body"),
        },
        checksum: [checksum; 16],
        expired_by: at(now),
    }
}

fn acknowledge(of: u8, ids: &[u8], now: u64) -> Write {
    Write::Acknowledge {
        mailbox: mailbox(of),
        ids: ids.iter().copied().map(blob).collect(),
        by: Opener {
            view: View::Proven,
            tells: Tells::Senders,
        },
        now: at(now),
    }
}

fn stored(now: u64) -> Outcome {
    Outcome::Appended(Appended::Stored {
        expires_at: at(now + 500),
    })
}

fn duplicate(first: u64) -> Outcome {
    Outcome::Appended(Appended::Duplicate {
        expires_at: at(first + 500),
    })
}

fn removed(blobs: u64) -> Outcome {
    Outcome::Removed(Removed { blobs, receipts: 0 })
}

const REUSED: Outcome = Outcome::Appended(Appended::IdReused);
const FULL: Outcome = Outcome::Appended(Appended::MailboxFull);

#[test]
fn a_repeat_within_one_batch_is_a_duplicate_and_another_blob_under_its_id_is_refused() {
    let mut engine = Engine::new(0);
    let plan = engine.run(&[
        append(1, 1, 1, 0),
        append(1, 1, 1, 5),
        append(1, 1, 2, 6),
        append(2, 1, 2, 7),
    ]);
    assert_eq!(plan.outcomes, [stored(0), duplicate(0), REUSED, stored(7)]);
    assert_eq!(
        (plan.happened.blobs.created, plan.happened.duplicates),
        (2, 1)
    );
    assert_eq!(engine.rows.len(), 2);
}

#[test]
fn what_comes_and_leaves_within_one_batch_is_not_written_but_remembered() {
    let mut engine = Engine::new(0);
    let plan = engine.run(&[
        append(1, 1, 1, 0),
        acknowledge(1, &[1, 1, 9], 1),
        append(1, 1, 1, 2),
        append(1, 1, 2, 2),
    ]);
    assert_eq!(plan.outcomes, [stored(0), removed(1), duplicate(0), REUSED]);
    assert!(plan.inserts.is_empty());
    assert_eq!((plan.deletes.len(), plan.departures.len()), (0, 1));
    let plan = engine.run(&[append(1, 1, 1, 900)]);
    assert_eq!(plan.outcomes, [duplicate(0)]);
    assert!(plan.is_empty());
}

#[test]
fn a_departed_id_is_free_again_after_its_time() {
    let mut engine = Engine::new(0);
    engine.run(&[append(1, 1, 1, 0)]);
    engine.run(&[acknowledge(1, &[1], 100)]);
    let plan = engine.run(&[append(1, 1, 2, 1099), append(1, 1, 2, 1100)]);
    assert_eq!(plan.outcomes, [REUSED, stored(1100)]);
}

#[test]
fn what_was_set_aside_as_corrupt_may_be_sent_again() {
    let mut engine = Engine::new(0);
    engine.run(&[append(1, 1, 1, 0)]);
    let set_aside = Write::Remove {
        keys: vec![OrderKey(1), OrderKey(77)],
        cause: Cause::Corrupt,
        now: at(1),
    };
    let plan = engine.run(&[set_aside, append(1, 1, 1, 1)]);
    assert_eq!(plan.outcomes, [removed(1), stored(1)]);
    assert_eq!(plan.set_aside.len(), 1);
    assert_eq!(plan.happened.blobs.lost, 1);
    assert_eq!(engine.next_key, 3, "no key is used twice");
}

#[test]
fn the_quota_counts_what_the_batch_has_stored_so_far() {
    let mut engine = Engine::new(2);
    let plan = engine.run(&[
        append(1, 1, 1, 0),
        append(1, 2, 1, 0),
        append(1, 3, 1, 0),
        acknowledge(1, &[1], 1),
        append(1, 4, 1, 2),
    ]);
    assert_eq!(
        plan.outcomes,
        [stored(0), stored(0), FULL, removed(1), stored(2)]
    );
}

#[test]
fn the_relays_bound_holds_within_a_batch() {
    let mut engine = Engine::new(0);
    engine.rules.quota.relay_bytes_max = 2 * 260;
    let plan = engine.run(&[append(1, 1, 1, 0), append(2, 1, 1, 0), append(3, 1, 1, 0)]);
    let full = Outcome::Appended(Appended::RelayFull);
    assert_eq!(plan.outcomes, [stored(0), stored(0), full]);
}

#[test]
fn a_full_mailbox_loses_its_expired_rows_first() {
    let mut engine = Engine::new(2);
    engine.run(&[append(1, 1, 1, 0), append(1, 2, 1, 400)]);
    let plan = engine.run(&[append(1, 3, 1, 499)]);
    assert_eq!(plan.outcomes, [FULL]);
    let plan = engine.run(&[append(1, 3, 1, 500), append(1, 4, 1, 500)]);
    assert_eq!(plan.outcomes, [stored(500), FULL]);
    assert_eq!((plan.happened.blobs.expired, plan.deletes.len()), (1, 1));
}

#[test]
fn a_nearly_full_disk_refuses_new_blobs_and_nothing_else() {
    let mut engine = Engine::new(0);
    engine.run(&[append(1, 1, 1, 0)]);
    engine.has_room = false;
    let plan = engine.run(&[
        append(1, 1, 1, 1),
        append(1, 2, 1, 1),
        acknowledge(1, &[1], 1),
    ]);
    let full = Outcome::Appended(Appended::RelayFull);
    assert_eq!(plan.outcomes, [duplicate(0), full, removed(1)]);
}

#[test]
fn a_purge_takes_only_what_its_view_shows_and_the_sweep_only_what_has_expired() {
    let mut engine = Engine::new(0);
    let mut hidden = append(1, 2, 1, 0);
    if let Write::Append { envelope, .. } = &mut hidden {
        envelope.class = Class::ProvenOnly;
    }
    engine.run(&[append(1, 1, 1, 0), hidden, append(2, 1, 1, 0)]);
    let all = vec![OrderKey(1), OrderKey(2), OrderKey(3)];
    let remove = |cause, now| Write::Remove {
        keys: all.clone(),
        cause,
        now: at(now),
    };
    let view = View::V1;
    let purge = Cause::Purged {
        mailbox: mailbox(1),
        view,
        tells: Tells::Nobody,
    };
    let plan = engine.run(&[remove(purge, 1), remove(Cause::Expired, 499)]);
    assert_eq!(plan.outcomes, [removed(1), removed(0)]);
    let plan = engine.run(&[remove(Cause::Expired, 500)]);
    assert_eq!(plan.outcomes, [removed(2)]);
    assert_eq!(plan.happened.blobs.expired, 2);
}

#[path = "receipts_tests.rs"]
mod receipts;

/// The promises about one blob in a few lines, without batches, keys or sets.
#[derive(Default)]
struct Model {
    stored: HashMap<(u8, u8), (u8, u64)>,
    left: HashMap<(u8, u8), (u8, u64, u64)>,
}

impl Model {
    fn append(&mut self, to: u8, id: u8, checksum: u8, now: u64, max: usize) -> Outcome {
        let left = self.left.get(&(to, id)).filter(|left| left.2 + 1000 > now);
        let first = self.stored.get(&(to, id)).copied();
        if let Some((kept, first)) = first.or(left.map(|left| (left.0, left.1))) {
            return if kept == checksum {
                duplicate(first)
            } else {
                REUSED
            };
        }
        if self.count(to) >= max {
            let expired: Vec<_> = self
                .stored
                .iter()
                .filter(|(key, blob)| key.0 == to && blob.1 + 500 <= now)
                .map(|(key, blob)| (*key, *blob))
                .collect();
            for (key, (checksum, first)) in expired {
                self.stored.remove(&key);
                self.left.insert(key, (checksum, first, now));
            }
        }
        if self.count(to) >= max {
            return FULL;
        }
        self.stored.insert((to, id), (checksum, now));
        stored(now)
    }

    fn count(&self, to: u8) -> usize {
        self.stored.keys().filter(|key| key.0 == to).count()
    }

    fn acknowledge(&mut self, of: u8, id: u8, now: u64) -> Outcome {
        let Some((checksum, first)) = self.stored.remove(&(of, id)) else {
            return removed(0);
        };
        self.left.insert((of, id), (checksum, first, now));
        removed(1)
    }
}

proptest! {
    #[test]
    fn batches_answer_as_if_each_write_came_alone(
        steps in prop::collection::vec(
            (0u8..3, 0u8..6, 0u8..2, prop::bool::weighted(0.3), 0u64..200, prop::bool::ANY),
            1..80,
        )
    ) {
        let mut engine = Engine::new(3);
        let mut model = Model::default();
        let (mut batch, mut expected) = (Vec::new(), Vec::new());
        let mut now = 0;
        for (to, id, checksum, is_acknowledgement, pause, ends_batch) in steps {
            if batch.is_empty() {
                now += pause;
            }
            if is_acknowledgement {
                batch.push(acknowledge(to, &[id], now));
                expected.push(model.acknowledge(to, id, now));
            } else {
                batch.push(append(to, id, checksum, now));
                expected.push(model.append(to, id, checksum, now, 3));
            }
            if ends_batch {
                prop_assert_eq!(&engine.run(&batch).outcomes, &expected);
                batch.clear();
                expected.clear();
                prop_assert_eq!(engine.rows.len(), model.stored.len());
            }
        }
    }
}
