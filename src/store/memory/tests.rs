//! A batch comes to the same as its writes one by one, whatever they are. Over this engine, because it
//! answers every question.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::ids::{BlobId, Topic};
use crate::secrets::Secret;

use crate::store::model::{Class, Envelope, Opener, Owner, Tells};
use crate::store::plan::known::Learnt;
use crate::store::plan::{Folded, Rules, fold};
use crate::store::quota::Quota;
use crate::store::write::{Cause, Outcome};

/// So many mailboxes, and owners, and recovery keys, and nonces.
const PLACES: u8 = 4;

const DEDUP: Duration = Duration::from_millis(1_000);

/// An engine without a pipeline.
struct Bare {
    rules: Rules,
    opened: Opened,
}

impl Bare {
    fn new(quota: Quota) -> Self {
        Self {
            rules: Rules {
                secret: Secret::from_bytes([1; 32]),
                quota,
                dedup: DEDUP,
                receipt_ttl: Duration::from_millis(2_000),
                clock: crate::clock::Clock::manual(Timestamp::default()).0,
            },
            opened: open(MemoryOptions {
                dedup: DEDUP,
                dedup_max: 0,
                metrics: Arc::new(Metrics::new()),
            }),
        }
    }

    fn known(&mut self, asked: &Asked) -> Known {
        let known = self.opened.engine.known(asked).now_or_never();
        known.unwrap().unwrap()
    }

    fn run(&mut self, batch: &[Write]) -> Vec<Outcome> {
        let batch: Vec<_> = batch.iter().collect();
        let mut learnt = Learnt::default();
        let mut asked = Asked::about(&batch);
        let plan = loop {
            let answer = self.known(&asked);
            learnt.learn(asked, answer);
            match fold(&batch, &self.rules, &learnt) {
                Folded::Plan(plan) => break plan,
                Folded::Asks(more) => asked = *more,
            }
        };
        let done = self.opened.engine.commit(&batch, &plan).now_or_never();
        done.unwrap().unwrap();
        plan.outcomes
    }

    fn held(&mut self) -> HeldInAll {
        self.known(&Asked::default()).held
    }

    fn pins(&self) -> Vec<Option<Pin>> {
        let places: Vec<_> = (0..PLACES).map(mailbox).collect();
        let pins = self.opened.reads.pins(&places).now_or_never();
        pins.unwrap().unwrap()
    }

    /// Everything that is kept, in words.
    fn kept(&mut self) -> String {
        let reads = Arc::clone(&self.opened.reads);
        let start = Timestamp::from_millis(0);
        let bounds = PageBounds {
            blobs_max: 1_000,
            bytes_max: u64::MAX,
        };
        let mut kept = format!("{:?} {:?}", self.held(), self.pins());
        for place in 0..PLACES {
            let name = mailbox(place);
            for view in [View::V1, View::Proven, View::DeviceSync] {
                let page = reads.page(name, view, OrderKey::START, bounds, start);
                let page = page.now_or_never().unwrap().unwrap();
                let held = reads.holdings(&[name], view, start).now_or_never();
                kept += &format!("{:?} {:?}", page.blobs, held.unwrap().unwrap());
            }
            let keys = [[place; 32]];
            let proofs = reads.recovery(&keys, u64::MAX, start).now_or_never();
            kept += &format!("{:?}", proofs.unwrap().unwrap());
        }
        kept
    }
}

fn mailbox(number: u8) -> MailboxHash {
    MailboxHash::from_bytes([number; 32])
}

fn blob(number: u8) -> BlobId {
    BlobId::from_bytes([number; 16])
}

fn envelope(to: u8, id: u8, now: u64) -> Envelope {
    Envelope {
        mailbox: mailbox(to),
        id: blob(id),
        class: Class::SeenByV1,
        owner: None,
        topic: None,
        receipt_to: None,
        stored_at: Timestamp::from_millis(now),
        expires_at: Timestamp::from_millis(now + 500),
        sealed: Bytes::new(),
        body: Bytes::from_static(b"body"),
    }
}

/// An append of one kind or another.
fn append(kind: u8, (to, id, parameter): (u8, u8, u8), now: u64) -> Write {
    let plain = envelope(to, id, now);
    let (topic, asks) = (Topic::from_prefix64(1), mailbox(PLACES - 1));
    let envelope = match kind {
        0 | 1 => plain,
        2 => Envelope {
            class: Class::ProvenOnly,
            topic: Some(topic),
            ..plain
        },
        3 => Envelope {
            receipt_to: Some(asks),
            ..plain
        },
        4 => Envelope {
            topic: Some(topic),
            receipt_to: Some(asks),
            ..plain
        },
        _ => Envelope {
            class: Class::DeviceSync,
            owner: Some(Owner {
                hash: mailbox(parameter % 2),
                version: u64::from(parameter),
            }),
            ..plain
        },
    };
    Write::Append {
        envelope,
        checksum: [parameter % 2; 16],
        expired_by: Timestamp::from_millis(now),
    }
}

/// What is done to rows.
fn change(kind: u8, (to, id, parameter): (u8, u8, u8), millis: u64) -> Write {
    let (place, now) = (mailbox(to), Timestamp::from_millis(millis));
    let views = [View::V1, View::Proven, View::DeviceSync];
    let view = views[usize::from(parameter) % 3];
    let tells = [Tells::Senders, Tells::Nobody][usize::from(parameter) % 2];
    let (mailbox, ids) = (place, vec![blob(id), blob(parameter)]);
    let remove = |cause| Write::Remove {
        keys: (1..200).map(OrderKey).collect(),
        cause,
        now,
    };
    match kind {
        0 | 1 => Write::Acknowledge {
            mailbox,
            ids,
            by: Opener { view, tells },
            now,
        },
        2 => Write::Delivered { mailbox, ids, now },
        3 => Write::Extend {
            mailbox,
            id: blob(id),
            expires_at: Timestamp::from_millis(millis + 100 * u64::from(parameter)),
            now,
        },
        4 => Write::Cancel {
            mailbox,
            id: blob(id),
            now,
        },
        5 => remove(Cause::Expired),
        6 => remove(Cause::OwnerPurged {
            owner: self::mailbox(to % 2),
        }),
        _ => remove(Cause::Purged {
            mailbox,
            view,
            tells,
        }),
    }
}

/// What is not about rows.
fn other(kind: u8, (to, id, parameter): (u8, u8, u8), millis: u64) -> Write {
    let now = Timestamp::from_millis(millis);
    match kind {
        0 | 1 => Write::Pin {
            mailboxes: [to, id % PLACES].map(mailbox).to_vec(),
            over_by: now,
            now,
        },
        2 => Write::Unpin {
            mailboxes: [to, id % PLACES].map(mailbox).to_vec(),
        },
        3 => Write::Burn {
            nonce: [to; 32],
            expired_by: now,
            now,
        },
        4 | 5 => Write::RecoveryPut {
            expired_by: now,
            proof: RecoveryProof {
                key_hash: [to; 32],
                owner: mailbox(id),
                is_proven: parameter % 2 == 0,
                sealed_proof: vec![parameter; 4].into(),
                stored_at: now,
                expires_at: Timestamp::from_millis(millis + 400),
            },
        },
        6 => Write::RecoveryRemove {
            key_hash: [to; 32],
            owner: mailbox(id),
        },
        _ => Write::ExpireProofs { expired_by: now },
    }
}

/// A write of any kind.
fn write(kind: u8, parameters: (u8, u8, u8), now: u64) -> Write {
    match kind {
        0..8 => append(kind, parameters, now),
        8..16 => change(kind - 8, parameters, now),
        _ => other(kind - 16, parameters, now),
    }
}

type Step = (u8, (u8, u8, u8), u64, bool);

/// Kind, parameters, the pause before the batch, and whether this one ends it.
fn steps(kinds: std::ops::Range<u8>) -> impl Strategy<Value = Vec<Step>> {
    let parameters = (0..PLACES, 0..6_u8, 0..9_u8);
    let step = (kinds, parameters, 0_u64..200, prop::bool::weighted(0.3));
    prop::collection::vec(step, 1..60)
}

/// The steps as batches of writes.
fn batches(steps: Vec<Step>) -> Vec<Vec<Write>> {
    let (mut batches, mut now) = (vec![Vec::new()], 0);
    for (kind, parameters, pause, ends_batch) in steps {
        let Some(batch) = batches.last_mut() else {
            continue;
        };
        if batch.is_empty() {
            now += pause;
        }
        batch.push(write(kind, parameters, now));
        if ends_batch {
            batches.push(Vec::new());
        }
    }
    batches
}

/// It was not counted as one that comes, so nobody was asked who goes for it: one pin too many.
#[test]
fn a_mailbox_that_is_unpinned_and_pinned_again_in_one_batch_takes_a_place() {
    let mut engine = Bare::new(Quota {
        pins_max: 2,
        ..Quota::UNBOUNDED
    });
    let now = Timestamp::from_millis(1);
    let pin = |numbers: [u8; 2]| Write::Pin {
        mailboxes: numbers.map(mailbox).to_vec(),
        over_by: now,
        now,
    };
    engine.run(&[pin([1, 3])]);
    let unpin = Write::Unpin {
        mailboxes: vec![mailbox(1)],
    };
    engine.run(&[unpin, pin([1, 2])]);
    assert_eq!(engine.held().pins, 2);
    let are_pinned = engine
        .pins()
        .iter()
        .map(Option::is_some)
        .collect::<Vec<_>>();
    assert_eq!(are_pinned, [false, true, true, false]);
}

proptest! {
    #[test]
    fn a_batch_of_any_writes_comes_to_the_same_as_its_writes_one_by_one(steps in steps(0..24)) {
        let quota = Quota {
            mailbox_blobs_max: 4,
            device_sync_blobs_max: 3,
            relay_bytes_max: 20 * 260,
            ..Quota::UNBOUNDED
        };
        let [mut batched, mut single] = [Bare::new(quota), Bare::new(quota)];
        for batch in batches(steps) {
            let one_by_one = batch.iter().flat_map(|write| single.run(std::slice::from_ref(write)));
            let one_by_one: Vec<_> = one_by_one.collect();
            prop_assert_eq!(batched.run(&batch), one_by_one);
            prop_assert_eq!(batched.kept(), single.kept());
        }
    }

    /// Which pins go may depend on how writes are gathered; how many there are does not.
    #[test]
    fn a_batch_never_leaves_a_pin_too_many_or_one_that_is_not_counted(steps in steps(16..19)) {
        let mut engine = Bare::new(Quota {
            pins_max: 2,
            ..Quota::UNBOUNDED
        });
        for batch in batches(steps) {
            engine.run(&batch);
            let pins = engine.pins().into_iter().flatten().count();
            prop_assert_eq!(engine.held().pins, pins as u64);
            prop_assert!(pins <= 2);
        }
    }
}
