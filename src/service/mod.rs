//! The rules; knows no socket, no wire format and no SQL.
//!
//! Sessions ask here for everything a client may ask for. Each verb has its file: `submit`,
//! `deliver`, `acknowledge`, `subscribe`, `expire` for the sweep that runs by itself, and `look_again`
//! for what was found damaged. `pins` keeps strangers out of mailboxes whose owners have proved themselves.
//! `charge` says what each request costs whom, `refusal` holds every reason to say no.

pub mod acknowledge;
pub mod charge;
pub mod deliver;
pub mod device_sync;
pub mod expire;
pub mod live;
pub mod look_again;
pub mod pins;
pub mod readiness;
pub mod recovery;
pub mod refusal;
pub mod sealed;
pub mod submit;
pub mod subscribe;
pub mod withdraw;

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::steady::SteadyClock;
use crate::clock::{Clock, Timestamp};
use crate::commons::Commons;
use crate::hub::Hub;
use crate::identity::Identity;
use crate::ids::BlobId;
use crate::limits::budgets::Budgets;
use crate::metrics::Metrics;
use crate::secrets::Secret;
use crate::store::Store;
use lru::LruCache;
use pins::Pins;
use refusal::Refusal;

// What sessions handle: they know the store's values, and neither its engines nor its SQL.
pub use crate::store::Pending;
pub use crate::store::StoreError;
pub use crate::store::model::{
    BacklogCursor, Class, Holding, More, Opener, OrderKey, Page, Receipt, ReceiptKind, Removed,
    StoredBlob, Tells, Usage, View,
};
pub use crate::store::others::{Member, Unheard};

/// What the service stands on.
pub struct Parts {
    /// Where blobs are kept.
    pub store: Arc<Store>,
    /// Which sessions of this process have opened which mailbox.
    pub hub: Arc<Hub>,
    /// What they share with each other beside the store.
    pub commons: Arc<dyn Commons>,
    /// Hashes mailboxes.
    pub secret: Secret,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How long a blob lives.
    pub blob_ttl: Duration,
    /// The shortest life of a blob that asks for receipts (`RELAY_RECEIPT_MIN_TTL_SECS`).
    pub receipt_min_ttl: Duration,
    /// How fast clients and addresses may be, here.
    pub budgets: Arc<Budgets>,
    /// Whether a v1 client may open a mailbox without a proof (`RELAY_V1_UNVERIFIED`).
    pub v1_allows_unverified: bool,
    /// Whether a v1 delivery tells who says to have sent it (`RELAY_V1_SENDER_ID`).
    pub v1_keeps_sender_id: bool,
}

/// The relay as clients see it, without wire and socket.
pub struct Service {
    parts: Parts,
    /// Says up to when things may be deleted for good.
    steady_clock: SteadyClock,
    identity: Identity,
    pins: Pins,
    /// What was delivered lately, by the first bits of the mailbox. Nothing awaits inside.
    delivered: Mutex<LruCache<(i64, BlobId), ()>>,
    /// When storage was last asked whether it answers. Nothing awaits while it is locked.
    probed: Mutex<Instant>,
    /// What it answered, as `relay_ready` shows it.
    is_ready: AtomicBool,
}

/// Deliveries that are remembered, to tell a repeat: 10 MB at the most.
const DELIVERED_MAX: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

impl Service {
    /// A service on these parts.
    pub fn new(parts: Parts) -> Self {
        // Every code is a series from the first scrape on, so that a rate over it has a beginning.
        Refusal::CODES
            .iter()
            .for_each(|code| parts.metrics.refusals(code).absolute(0));
        let identity = parts.secret.identity();
        let service = Self {
            steady_clock: SteadyClock::new(parts.clock.clone()),
            parts,
            identity,
            pins: Pins::default(),
            delivered: Mutex::new(LruCache::new(DELIVERED_MAX)),
            probed: Mutex::new(Instant::now()),
            is_ready: AtomicBool::new(true),
        };
        // The store has just been opened.
        service.show_ready(true);
        service
    }

    /// The store beneath, for usage.
    pub fn store(&self) -> &Arc<Store> {
        &self.parts.store
    }

    /// The relays that share the database, this one included; `None` for a relay that shares it with nobody.
    pub async fn relays(&self) -> Result<Option<Vec<Member>>, Unheard> {
        self.parts.commons.relays().await
    }

    /// The relay's time, by which blobs expire.
    pub fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// Counts a refusal that is about to be told.
    pub fn count_refusal(&self, refusal: &Refusal) {
        self.parts.metrics.messages_rejected_total.increment(1);
        self.parts.metrics.refusals(refusal.code()).increment(1);
    }

    /// Housekeeping that keeps bounded memory small, and a look at the clock; called every few
    /// seconds.
    pub fn tidy(&self) {
        self.parts.budgets.tidy();
        self.watch_clock();
    }
}

#[cfg(test)]
impl Service {
    /// One over a memory store without bounds, and what it counts.
    pub(crate) fn in_memory(clock: Clock) -> (Self, Arc<Metrics>) {
        use crate::commons::Alone;
        use crate::config::Config;
        use crate::store::StoreOptions;
        use crate::store::memory::{self, MemoryOptions};
        use crate::store::quota::Quota;

        let (secret, metrics) = (Secret::random(), Arc::new(Metrics::new()));
        let opened = memory::open(MemoryOptions {
            dedup: Duration::ZERO,
            dedup_max: 1,
            metrics: Arc::clone(&metrics),
        });
        let options = StoreOptions {
            secret: secret.clone(),
            quota: Quota::UNBOUNDED,
            dedup: Duration::ZERO,
            receipt_ttl: Duration::from_secs(86_400),
            news: Arc::new(|_| {}),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
        };
        let config = Config::default();
        let hub = Arc::new(Hub::default());
        let budgets = Arc::new(Budgets::new(&config, clock.clone(), &metrics));
        let commons = Alone::new(Arc::clone(&hub), Arc::clone(&budgets), Arc::clone(&metrics));
        let service = Self::new(Parts {
            commons: Arc::new(commons),
            receipt_min_ttl: Duration::from_secs(3_600),
            v1_allows_unverified: true,
            v1_keeps_sender_id: true,
            store: Arc::new(Store::start(opened, options)),
            hub,
            secret,
            budgets,
            clock,
            metrics: Arc::clone(&metrics),
            blob_ttl: config.blob_ttl,
        });
        (service, metrics)
    }
}
