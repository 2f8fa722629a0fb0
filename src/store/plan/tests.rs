//! Folding batches, against rows in memory and against a model of the promises.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::commit::Cause;
use crate::store::model::{Appended, Opener, Tells, View};
use crate::store::plan::needs::{
    mailboxes_to_read, mailboxes_to_relieve, receipt_mailboxes_to_read, rows_to_read, topics_of,
};
use crate::store::sqlite::working_set::WorkingSet;

/// Rows in memory and everything that a plan needs, instead of a database.
struct Engine {
    secret: Secret,
    quota: Quota,
    sets: WorkingSets,
    departures: Departures,
    rows: HashMap<i64, Header>,
    next_key: i64,
    held: HeldInAll,
    has_room: bool,
}

impl Engine {
    fn new(mailbox_blobs_max: u64) -> Self {
        Self {
            secret: Secret::from_bytes([1; 32]),
            quota: Quota {
                mailbox_blobs_max,
                ..Quota::UNBOUNDED
            },
            sets: WorkingSets::new(1 << 20),
            departures: Departures::new(Duration::from_millis(1000), 0),
            rows: HashMap::new(),
            next_key: 1,
            held: HeldInAll::default(),
            has_room: true,
        }
    }

    fn run(&mut self, batch: &[Write]) -> Plan {
        let batch: Vec<_> = batch.iter().collect();
        let missing = mailboxes_to_read(&batch, &mut self.sets);
        self.read_sets(&missing);
        let mut known = Known::default();
        let mut keys = rows_to_read(&batch, &self.sets, &self.secret);
        for place in topics_of(&batch) {
            let is_of = |row: &Header| Some(place.1) == row.topic.map(Topic::prefix64);
            let rows = self.rows.iter().filter(|row| row.1.mailbox64 == place.0);
            let found: Vec<_> = rows.filter(|row| is_of(row.1)).map(|row| *row.0).collect();
            keys.extend(&found);
            known.topics.insert(place, found);
        }
        for key in keys {
            if let Some(row) = self.rows.get(&key) {
                known.headers.insert(key, *row);
            }
        }
        let missing = receipt_mailboxes_to_read(&batch, &known, &mut self.sets);
        self.read_sets(&missing);
        for (mailbox64, by) in mailboxes_to_relieve(&batch, &known, &self.sets, &self.quota) {
            let expired: Vec<_> = self
                .rows
                .iter()
                .filter(|(_, row)| row.mailbox64 == mailbox64 && row.expires_at <= by)
                .collect();
            known
                .headers
                .extend(expired.iter().map(|(k, r)| (**k, **r)));
            let mut keys: Vec<_> = expired.iter().map(|(key, _)| **key).collect();
            keys.sort_unstable();
            known.expired.insert(mailbox64, keys);
        }
        let missing = receipt_mailboxes_to_read(&batch, &known, &mut self.sets);
        self.read_sets(&missing);
        let rules = Rules {
            secret: &self.secret,
            quota: self.quota,
            has_room: self.has_room,
            departures: &self.departures,
            receipt_ttl: Duration::from_millis(2_000),
        };
        let plan = fold(
            &batch,
            &rules,
            known,
            &mut self.sets,
            self.next_key,
            self.held,
        );
        self.apply(&batch, &plan);
        plan
    }

    fn read_sets(&mut self, mailboxes: &[i64]) {
        for mailbox64 in mailboxes {
            let mut set = WorkingSet::default();
            for (key, row) in self.rows.iter().filter(|row| row.1.mailbox64 == *mailbox64) {
                set.insert(Entry {
                    key: *key,
                    id64: row.id64,
                    size: row.size,
                    expires_from: row.expires_at,
                });
            }
            self.sets.put(*mailbox64, set);
        }
    }

    fn apply(&mut self, batch: &[&Write], plan: &Plan) {
        for (key, envelope, checksum) in plan.rows(batch) {
            let header = Header::new(envelope, checksum, &self.secret);
            assert!(self.rows.insert(key, header).is_none(), "a key twice");
        }
        for key in plan.deletes.iter().chain(&plan.set_aside) {
            assert!(self.rows.remove(key).is_some(), "deleted what is not there");
        }
        for (key, expires_at) in &plan.extended {
            let row = self.rows.get_mut(key).expect("extended what is not there");
            assert!(row.expires_at < *expires_at);
            row.expires_at = *expires_at;
        }
        for key in &plan.delivered {
            let row = self.rows.get_mut(key).expect("marked what is not there");
            row.is_delivered_told = true;
        }
        self.departures.remember(&plan.departures);
        self.departures.forget(plan.expired_by, plan.now);
        self.next_key = plan.next_key();
        self.held = plan.held;
        let held = self.held.blobs + self.held.receipts;
        assert_eq!(held, self.rows.len() as u64);
        let bytes: u64 = self.rows.values().map(|row| row.size.charged_bytes()).sum();
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
    assert_eq!(plan.inserts, [None]);
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
    assert_eq!(plan.set_aside, [1]);
    assert_eq!(plan.happened.blobs.lost, 1);
    assert_eq!(plan.first_key, 2, "no key is used twice");
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
    engine.quota.relay_bytes_max = 2 * 260;
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
