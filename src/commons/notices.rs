//! Tells a v1 sender, while it is connected, that its blob was delivered or acknowledged.
//!
//! In memory only: a restart forgets who waits for what, and so does the bound. A notice goes to
//! the sender's mailbox name, so it arrives on whichever of its connections is open.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::hub::{Fate, Hub, Notice};
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;

/// Blobs whose senders wait for a notice. An entry is about 200 bytes: 20 MB at the bound. The one
/// that was touched longest ago is forgotten first, and counted.
const AWAITED_MAX: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

/// Longer names get no notice: 100,000 of a kilobyte would be 100 MB. A UUID has 36.
const NAME_BYTES_MAX: usize = 64;

/// Who waits for what.
pub(super) struct Notices {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    /// Nothing awaits inside.
    awaited: Mutex<LruCache<BlobId, Awaited>>,
}

struct Awaited {
    sender: MailboxHash,
    name: Arc<str>,
    delivered: bool,
}

impl Notices {
    pub(super) fn new(hub: Arc<Hub>, metrics: Arc<Metrics>) -> Self {
        Self {
            hub,
            metrics,
            awaited: Mutex::new(LruCache::new(AWAITED_MAX)),
        }
    }

    /// If the blob is not stored after all, nothing ever becomes of it and the bound forgets it.
    pub(super) fn await_fate(&self, blob: BlobId, sender: MailboxHash, name: &str) {
        if name.len() > NAME_BYTES_MAX {
            return;
        }
        let awaited = Awaited {
            sender,
            name: name.into(),
            delivered: false,
        };
        let mut all = self.awaited();
        // A repeated submit must not bring a second Delivered.
        if all.contains(&blob) {
            return;
        }
        if let Some((forgotten, _)) = all.push(blob, awaited)
            && forgotten != blob
        {
            self.metrics.notices_dropped_total.increment(1);
        }
    }

    /// Whether a sender waits to hear of this blob.
    pub(super) fn awaits(&self, blob: &BlobId) -> bool {
        self.awaited().contains(blob)
    }

    /// The blob was written to a recipient: told once. Who was told what, if it was now.
    pub(super) fn delivered(&self, blob: &BlobId) -> Option<(MailboxHash, Notice)> {
        let mut all = self.awaited();
        let awaited = all.get_mut(blob).filter(|awaited| !awaited.delivered)?;
        awaited.delivered = true;
        let (sender, name) = (awaited.sender, Arc::clone(&awaited.name));
        drop(all);
        Some(self.tell(sender, name, *blob, Fate::Delivered))
    }

    /// A recipient acknowledged the blob: nothing more will become of it. Who was told what.
    pub(super) fn acknowledged(&self, blob: &BlobId) -> Option<(MailboxHash, Notice)> {
        let awaited = self.awaited().pop(blob)?;
        Some(self.tell(awaited.sender, awaited.name, *blob, Fate::Acknowledged))
    }

    /// Passes on a notice of another relay, which knows the sender by the prefix of its mailbox.
    pub(super) fn pass_on(&self, sender64: i64, notice: &Notice) {
        let dropped = self.hub.tell_prefix(sender64, notice);
        self.metrics.notices_dropped_total.increment(dropped as u64);
    }

    fn tell(
        &self,
        sender: MailboxHash,
        name: Arc<str>,
        blob: BlobId,
        fate: Fate,
    ) -> (MailboxHash, Notice) {
        let notice = Notice { name, blob, fate };
        let dropped = self.hub.tell(&sender, &notice);
        self.metrics.notices_dropped_total.increment(dropped as u64);
        (sender, notice)
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, LruCache<BlobId, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Inbox;
    use crate::ids::ConnectionId;
    use std::task::{Context, Poll, Waker};

    const SENDER: MailboxHash = MailboxHash::from_bytes([1; 32]);

    fn fates(inbox: &Inbox) -> Vec<Fate> {
        let context = &mut Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match inbox.poll_notice(context) {
            Poll::Ready(notice) => Some(notice.fate),
            Poll::Pending => None,
        })
        .collect()
    }

    #[test]
    fn a_sender_is_told_once_of_the_delivery_and_once_of_the_acknowledgement() {
        let hub = Arc::new(Hub::default());
        let inbox = Arc::new(Inbox::default());
        let _joined = hub.join(SENDER, ConnectionId::next(), Arc::clone(&inbox));
        let notices = Notices::new(hub, Arc::new(Metrics::new()));
        let blob = BlobId::from_bytes([5; 16]);
        notices.await_fate(blob, SENDER, "a submit");
        notices.delivered(&blob);
        notices.delivered(&blob);
        notices.await_fate(blob, SENDER, "a submit");
        notices.delivered(&blob);
        notices.acknowledged(&blob);
        notices.acknowledged(&blob);
        assert_eq!(fates(&inbox), [Fate::Delivered, Fate::Acknowledged]);
    }

    #[test]
    fn memory_for_awaited_blobs_is_bounded_and_long_names_are_not_kept() {
        let notices = Notices::new(Arc::default(), Arc::new(Metrics::new()));
        for number in 0..=AWAITED_MAX.get() as u64 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            notices.await_fate(BlobId::from_bytes(id), SENDER, "x");
        }
        assert_eq!(notices.awaited().len(), AWAITED_MAX.get());
        let long = BlobId::from_bytes([9; 16]);
        notices.await_fate(long, SENDER, &"x".repeat(NAME_BYTES_MAX + 1));
        assert!(!notices.awaited().contains(&long));
    }
}
