//! A batch of writes that takes too many rows with it is committed in parts, on every engine.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use vauchi_relay::clock::Timestamp;
use vauchi_relay::store::StoreError;
use vauchi_relay::store::engine::{
    Asked, CommitError, Engine, Known, Opened, Plan, TookPlace, Write,
};
use vauchi_relay::store::model::{Appended, Envelope, View};

use crate::store::contract::{ENGINES, HOUR, NOW, Rig, at, blob, expiring, mailbox, quota};

/// Rows of any table that the plan of several writes changes, at the most.
const PLAN_ROWS_MAX: usize = 2_048;

/// As many as a mailbox may hold here, and as a full one loses at once.
const EACH: u32 = 256;

/// Writes and rows of each plan that was committed.
type Plans = Arc<Mutex<Vec<(usize, usize)>>>;

/// Notes every plan on its way.
struct Watched {
    plans: Plans,
    inner: Box<dyn Engine>,
}

#[async_trait]
impl Engine for Watched {
    async fn known(&mut self, asked: &Asked) -> Result<Known, CommitError> {
        self.inner.known(asked).await
    }

    async fn commit(&mut self, batch: &[&Write], plan: &Plan) -> Result<(), CommitError> {
        let size = (batch.len(), plan.rows());
        self.plans.lock().unwrap().push(size);
        self.inner.commit(batch, plan).await
    }

    async fn reopen(&mut self) -> Result<TookPlace, StoreError> {
        self.inner.reopen().await
    }

    async fn upkeep(&mut self, expired_by: Timestamp) -> Result<bool, CommitError> {
        self.inner.upkeep(expired_by).await
    }

    async fn close(&mut self) {
        self.inner.close().await;
    }
}

/// A mailbox for the receipts about each mailbox, which has room for all of them.
fn asking(from: u8, id: u32) -> Envelope {
    Envelope {
        receipt_to: Some(mailbox(100 + from)),
        ..blob(from, id)
    }
}

/// Fills mailboxes with what expires, then has one batch bring one blob more for each: every one of
/// them loses [`EACH`] rows, is to remember as many and tells as many senders.
async fn relieve(rig: &Rig, plans: &Plans, mailboxes: std::ops::Range<u8>) {
    let mut pending = Vec::new();
    for number in mailboxes.clone() {
        for id in 0..EACH {
            let envelope = expiring(asking(number, id), NOW.plus(HOUR));
            pending.push(rig.store.append(envelope, NOW).await.unwrap());
        }
    }
    for outcome in pending {
        assert!(matches!(outcome.await, Ok(Appended::Stored { .. })));
    }
    plans.lock().unwrap().clear();
    let later = NOW.plus(2 * HOUR);
    let mut pending = Vec::new();
    for number in mailboxes.clone() {
        let envelope = at(blob(number, EACH), later);
        pending.push(rig.store.append(envelope, later).await.unwrap());
    }
    let mut answers = 0;
    for outcome in pending {
        assert!(matches!(outcome.await, Ok(Appended::Stored { .. })));
        answers += 1;
    }
    assert_eq!(answers, mailboxes.len());
    for number in mailboxes {
        assert_eq!(rig.ids(number, View::V1, later).await, [EACH]);
        let told = rig.blobs(100 + number, View::Proven, later).await;
        assert_eq!(told.len(), EACH as usize);
    }
}

#[tokio::test]
async fn full_mailboxes_that_lose_too_much_at_once_are_relieved_in_parts() {
    for engine in ENGINES {
        let plans = Plans::default();
        let settings = quota(|quota| quota.mailbox_blobs_max = EACH.into());
        let wrap = |opened: Opened| Opened {
            engine: Box::new(Watched {
                plans: Arc::clone(&plans),
                inner: opened.engine,
            }),
            ..opened
        };
        let rig = Rig::open_under(engine, settings, wrap).await;
        // Few enough to be asked about at once, and more than may be.
        for mailboxes in [0..4, 4..16] {
            let count = mailboxes.len();
            relieve(&rig, &plans, mailboxes).await;
            let plans = plans.lock().unwrap();
            let writes: usize = plans.iter().map(|(writes, _)| writes).sum();
            let rows: usize = plans.iter().map(|(_, rows)| rows).sum();
            assert_eq!((writes, rows), (count, count * (3 * EACH as usize + 1)));
            assert!(plans.len() > 1 && plans.len() < count, "{plans:?}");
            assert!(
                plans.iter().all(|(_, rows)| *rows <= PLAN_ROWS_MAX),
                "{plans:?}"
            );
        }
        let (usage, lost) = (rig.usage(), 16 * u64::from(EACH));
        assert!(usage.is_conserved(), "{usage:?}");
        assert_eq!((usage.stored, usage.expired), (16, lost));
        assert_eq!((usage.receipts.stored, usage.receipts_dropped), (lost, 0));
    }
}
