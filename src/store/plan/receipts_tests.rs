//! Topics, cancelling, extending and receipts, where rows come and leave in one batch.

use super::*;
use crate::store::model::{Receipt, ReceiptKind};

/// The mailbox in which receipts lie.
const RECEIPTS: u8 = 9;

fn change(mut write: Write, change: impl FnOnce(&mut Envelope)) -> Write {
    if let Write::Append { envelope, .. } = &mut write {
        change(envelope);
    }
    write
}

fn about(topic: i64, write: Write) -> Write {
    change(write, |envelope| {
        envelope.topic = Some(Topic::from_prefix64(topic));
    })
}

fn asking(write: Write) -> Write {
    change(write, |envelope| {
        envelope.receipt_to = Some(mailbox(RECEIPTS));
    })
}

fn delivered(of: u8, ids: &[u8], now: u64) -> Write {
    Write::Delivered {
        mailbox: mailbox(of),
        ids: ids.iter().copied().map(blob).collect(),
        now: at(now),
    }
}

fn extend(of: u8, id: u8, expires_at: u64, now: u64) -> Write {
    Write::Extend {
        mailbox: mailbox(of),
        id: blob(id),
        expires_at: at(expires_at),
        now: at(now),
    }
}

fn cancel(of: u8, id: u8, now: u64) -> Write {
    Write::Cancel {
        mailbox: mailbox(of),
        id: blob(id),
        now: at(now),
    }
}

fn told(plan: &Plan) -> Vec<(u8, ReceiptKind)> {
    let receipts = plan.receipts.iter();
    receipts
        .map(|(envelope, _)| {
            let receipt = Receipt::parse(&envelope.body).unwrap();
            (receipt.id.as_bytes()[0], receipt.kind)
        })
        .collect()
}

fn keys(rows: &[(OrderKey, Header)]) -> Vec<i64> {
    rows.iter().map(|(key, _)| key.0).collect()
}

#[test]
fn of_a_topic_only_the_last_one_of_a_batch_is_written() {
    let mut engine = Engine::new(1);
    engine.run(&[about(1, append(1, 1, 1, 0))]);
    let plan = engine.run(&[
        about(1, append(1, 2, 1, 1)),
        about(1, append(1, 3, 1, 2)),
        append(1, 2, 1, 3),
        append(1, 1, 1, 3),
        append(1, 3, 1, 3),
    ]);
    let answers = [
        stored(1),
        stored(2),
        duplicate(1),
        duplicate(0),
        duplicate(2),
    ];
    assert_eq!(plan.outcomes, answers);
    let written: Vec<_> = plan.inserts.iter().map(|insert| insert.source).collect();
    assert_eq!(written, [Source::Write(1)]);
    assert_eq!((keys(&plan.deletes), plan.departures.len()), (vec![1], 2));
    let blobs = plan.happened.blobs;
    assert_eq!((blobs.created, blobs.replaced), (2, 2));
}

/// The prefixes of two mailboxes may be the same; what lies in them is not.
#[test]
fn a_topic_of_another_mailbox_with_the_same_prefix_is_another_topic() {
    let mut other = [1; 32];
    other[31] = 2;
    let mut engine = Engine::new(0);
    engine.run(&[about(1, append(1, 1, 1, 0))]);
    let elsewhere = change(about(1, append(1, 2, 1, 1)), |envelope| {
        envelope.mailbox = MailboxHash::from_bytes(other);
    });
    let plan = engine.run(&[elsewhere, about(1, append(1, 3, 1, 2))]);
    assert_eq!(keys(&plan.deletes), [1]);
    assert_eq!(plan.happened.blobs.replaced, 1);
}

#[test]
fn what_comes_and_leaves_within_one_batch_is_told_all_the_same() {
    let mut engine = Engine::new(0);
    let plan = engine.run(&[
        asking(append(1, 1, 1, 0)),
        delivered(1, &[1, 1], 1),
        extend(1, 1, 900, 1),
        acknowledge(1, &[1], 2),
        asking(about(1, append(1, 2, 1, 2))),
        about(1, append(1, 3, 1, 2)),
        asking(append(1, 4, 1, 2)),
        cancel(1, 4, 3),
        append(1, 4, 1, 3),
    ]);
    let expected = [
        (1, ReceiptKind::Delivered),
        (1, ReceiptKind::Acknowledged),
        (2, ReceiptKind::Removed),
        (4, ReceiptKind::Removed),
    ];
    assert_eq!(told(&plan), expected);
    assert_eq!(plan.outcomes[8], duplicate(2));
    assert!(plan.extended.is_empty() && plan.delivered.is_empty());
    assert_eq!(plan.new_rows(&[]).count(), 4, "the receipts");
    assert_eq!(plan.departures.len(), 3, "no receipt is among them");
}

#[test]
fn a_row_of_this_batch_is_extended_and_marked() {
    let mut engine = Engine::new(0);
    let plan = engine.run(&[
        asking(append(1, 1, 1, 0)),
        extend(1, 1, 900, 1),
        extend(1, 1, 800, 1),
        delivered(1, &[1], 1),
        append(1, 1, 1, 2),
    ]);
    let known = Outcome::Appended(Appended::Duplicate {
        expires_at: at(900),
    });
    assert_eq!(plan.outcomes[4], known);
    // It is written as it is to be.
    assert!(plan.extended.is_empty() && plan.delivered.is_empty());
    let row = engine.rows[&OrderKey(1)];
    assert_eq!((row.expires_at, row.is_delivered_told), (at(900), true));
}

/// The mailbox that receipts go to may not be what the batch is about.
#[test]
fn the_quota_of_receipts_is_exact_when_their_mailbox_must_be_read() {
    let mut engine = Engine::new(2);
    let fill = change(append(RECEIPTS, 1, 1, 0), |envelope| {
        envelope.class = Class::ProvenOnly;
    });
    engine.run(&[fill, asking(append(1, 1, 1, 0)), asking(append(1, 2, 1, 0))]);
    let plan = engine.run(&[acknowledge(1, &[1, 2], 1)]);
    assert_eq!(told(&plan), [(1, ReceiptKind::Acknowledged)]);
    assert_eq!(plan.happened.receipts_dropped, 1);
}

/// Receipts of the same batch may take the places that an append counts on.
#[test]
fn a_mailbox_that_receipts_fill_loses_its_expired_rows() {
    let mut engine = Engine::new(3);
    let hidden = |id, now| {
        change(append(RECEIPTS, id, 1, now), |envelope| {
            envelope.class = Class::ProvenOnly;
        })
    };
    engine.run(&[
        hidden(1, 0),
        asking(append(1, 1, 1, 400)),
        asking(append(1, 2, 1, 400)),
    ]);
    let plan = engine.run(&[acknowledge(1, &[1, 2], 600), hidden(2, 600)]);
    assert_eq!(plan.outcomes, [removed(2), stored(600)]);
    assert_eq!(plan.happened.blobs.expired, 1);
    assert_eq!(told(&plan).len(), 2);
}

#[test]
fn a_nearly_full_disk_refuses_news_of_a_delivery_and_no_other() {
    let mut engine = Engine::new(0);
    engine.run(&[asking(append(1, 1, 1, 0))]);
    engine.has_room = false;
    let plan = engine.run(&[delivered(1, &[1], 1), acknowledge(1, &[1], 1)]);
    assert_eq!(told(&plan), [(1, ReceiptKind::Acknowledged)]);
    assert_eq!(plan.happened.receipts_dropped, 1);
}

#[test]
fn a_corrupt_row_is_told_lost_and_a_corrupt_receipt_tells_nothing() {
    let mut engine = Engine::new(0);
    engine.run(&[asking(append(1, 1, 1, 0))]);
    let corrupt = |key| Write::Remove {
        keys: vec![OrderKey(key)],
        cause: Cause::Corrupt,
        now: at(1),
    };
    let plan = engine.run(&[corrupt(1)]);
    assert_eq!(told(&plan), [(1, ReceiptKind::Lost)]);
    let plan = engine.run(&[corrupt(2)]);
    assert!(plan.receipts.is_empty());
    assert_eq!(plan.happened.receipts.lost, 1);
    assert_eq!(keys(&plan.set_aside), [2]);
    let receipt = Outcome::Removed(Removed {
        blobs: 0,
        receipts: 1,
    });
    assert_eq!(plan.outcomes, [receipt]);
}

fn write(kind: u8, (to, id, parameter): (u8, u8, u8), now: u64) -> Write {
    match kind {
        0..=3 => append(to, id, 1, now),
        4..=6 => about(i64::from(parameter % 2), append(to, id, 1, now)),
        7..=9 => asking(append(to, id, 1, now)),
        10 => asking(about(1, append(to, id, 1, now))),
        11 => acknowledge(to, &[id, parameter], now),
        12 => delivered(to, &[id, parameter], now),
        13 => extend(to, id, now + 100 * u64::from(parameter), now),
        14 => cancel(to, id, now),
        _ => Write::Remove {
            keys: (1..200).map(OrderKey).collect(),
            cause: Cause::Expired,
            now: at(now),
        },
    }
}

proptest! {
    #[test]
    fn a_batch_comes_to_the_same_as_its_writes_one_by_one(
        steps in prop::collection::vec(
            (0u8..16, (8u8..10, 0u8..5, 0u8..9), 0u64..200, prop::bool::weighted(0.3)),
            1..60,
        )
    ) {
        let [mut batched, mut single] = [Engine::new(4), Engine::new(4)];
        let (mut batch, mut expected) = (Vec::new(), Vec::new());
        let mut now = 0;
        for (kind, parameters, pause, ends_batch) in steps {
            if batch.is_empty() {
                now += pause;
            }
            let next = write(kind, parameters, now);
            expected.extend(single.run(std::slice::from_ref(&next)).outcomes);
            batch.push(next);
            if ends_batch {
                prop_assert_eq!(&batched.run(&batch).outcomes, &expected);
                batch.clear();
                expected.clear();
                prop_assert_eq!(&batched.rows, &single.rows);
                prop_assert_eq!(batched.held, single.held);
            }
        }
    }
}
