//! What every engine of the store promises, on every engine.
//!
//! A new engine is an entry of [`KNOWN`]. Deletion by expiry may work in coarser slots of time than
//! visibility does, so these tests let an hour pass before they expect an expired blob to be swept.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use tempfile::TempDir;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use vauchi_relay::clock::{Clock, Timestamp};
use vauchi_relay::config::Database;
use vauchi_relay::ids::{BlobId, MailboxHash};
use vauchi_relay::metrics::Metrics;
use vauchi_relay::secrets::Secret;
use vauchi_relay::store::engine::{Departures, NewRow, Opened};
use vauchi_relay::store::memory::{self, MemoryOptions};
use vauchi_relay::store::model::{
    Appended, Class, Envelope, Opener, OrderKey, Owner, Page, PageBounds, ROW_OVERHEAD_BYTES,
    StoredBlob, Tells, Usage, View,
};
use vauchi_relay::store::postgres::{self, PostgresOptions};
use vauchi_relay::store::quota::Quota;
use vauchi_relay::store::sqlite::{self, Pace, SqliteOptions};
use vauchi_relay::store::{OnNews, Store, StoreError, StoreOptions};

use crate::database;
use crate::store::scratch;

/// An engine under test.
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    /// Whether what it keeps outlives the process.
    pub(crate) reopens: bool,
    /// Opens it in a folder of its own; a refusal comes back in the engine's words.
    open: fn(PathBuf, Settings, Arc<Metrics>) -> Opening,
}

type Opening = LocalBoxFuture<'static, Result<Opened, String>>;

/// Every engine that can be tested here.
#[derive(Clone, Copy)]
pub(crate) struct Engines;

/// For `for engine in ENGINES`.
pub(crate) const ENGINES: Engines = Engines;

impl Engines {
    pub(crate) fn iter(self) -> impl Iterator<Item = &'static Engine> {
        let is_here = |engine: &&Engine| engine.name != POSTGRES || database::is_there();
        KNOWN.iter().filter(is_here)
    }
}

impl IntoIterator for Engines {
    type Item = &'static Engine;
    type IntoIter = Box<dyn Iterator<Item = &'static Engine>>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

/// The engine that needs a server.
pub(crate) const POSTGRES: &str = "postgres";

/// Every engine.
static KNOWN: &[Engine] = &[
    Engine {
        name: "memory",
        reopens: false,
        open: |_, settings, metrics| {
            let opened = memory::open(MemoryOptions {
                dedup: settings.dedup,
                dedup_max: settings.dedup_max,
                metrics,
            });
            Box::pin(async { Ok(opened) })
        },
    },
    Engine {
        name: "scratch",
        reopens: false,
        open: |_, settings, metrics| {
            let departures = Departures::new(settings.dedup, settings.dedup_max, metrics);
            let opened = scratch::open(departures);
            Box::pin(async { Ok(opened) })
        },
    },
    Engine {
        name: "sqlite",
        reopens: true,
        open: |folder, settings, metrics| open_sqlite(folder, settings, metrics, Pace::default()),
    },
    Engine {
        name: "sqlite, settling all the time",
        reopens: true,
        open: |folder, settings, metrics| {
            let pace = Pace {
                rows: 1,
                step: 3,
                tick: Duration::ZERO,
            };
            open_sqlite(folder, settings, metrics, pace)
        },
    },
    Engine {
        name: POSTGRES,
        reopens: true,
        open: |folder, settings, metrics| {
            Box::pin(async move {
                let url = database::of_folder(&folder).await;
                let options = PostgresOptions {
                    database: Database::parse(&url).unwrap(),
                    secret: settings.secret,
                    secret_file: folder.join("relay.secret"),
                    dedup: settings.dedup,
                    dedup_max: settings.dedup_max,
                    metrics,
                    clock: Clock::manual(NOW).0,
                };
                let opened = postgres::open(options).await;
                opened.map_err(|error| error.to_string())
            })
        },
    },
];

fn open_sqlite(folder: PathBuf, settings: Settings, metrics: Arc<Metrics>, pace: Pace) -> Opening {
    let options = SqliteOptions {
        data_dir: folder,
        secret: settings.secret,
        free_bytes_min: 0,
        dedup: settings.dedup,
        dedup_max: settings.dedup_max,
        metrics,
        clock: Clock::manual(NOW).0,
        allow_network_fs: true,
        pace,
    };
    Box::pin(async {
        let opened = sqlite::open(options).await;
        opened.map_err(|error| error.to_string())
    })
}

pub(crate) fn durable_engines() -> impl Iterator<Item = &'static Engine> {
    ENGINES.iter().filter(|engine| engine.reopens)
}

/// What a test may choose.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) secret: Secret,
    pub(crate) quota: Quota,
    pub(crate) dedup: Duration,
    pub(crate) dedup_max: u64,
    pub(crate) receipt_ttl: Duration,
    pub(crate) news: OnNews,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secret: Secret::from_bytes([7; 32]),
            quota: UNBOUNDED,
            dedup: HOUR,
            dedup_max: 1_000,
            receipt_ttl: 30 * DAY,
            news: Arc::new(|_| ()),
        }
    }
}

impl Settings {
    fn options(self, metrics: Arc<Metrics>) -> StoreOptions {
        StoreOptions {
            secret: self.secret,
            quota: self.quota,
            dedup: self.dedup,
            receipt_ttl: self.receipt_ttl,
            news: self.news,
            clock: Clock::manual(NOW).0,
            metrics,
        }
    }
}

/// No bound at all.
pub(crate) const UNBOUNDED: Quota = Quota::UNBOUNDED;

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// When the tests begin.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// More than any test stores.
pub(crate) const EVERYTHING: PageBounds = PageBounds {
    blobs_max: 1_000,
    bytes_max: 1 << 40,
};

/// An open engine with its folder.
pub(crate) struct Rig {
    pub(crate) engine: &'static Engine,
    pub(crate) store: Arc<Store>,
    metrics: Arc<Metrics>,
    settings: Settings,
    folder: TempDir,
}

/// A subscriber who proved possession; nobody is told.
pub(crate) const SEEN: Opener = Opener {
    view: View::Proven,
    tells: Tells::Nobody,
};

/// A device; nobody is told.
pub(crate) const SEEN_BY_DEVICE: Opener = Opener {
    view: View::DeviceSync,
    tells: Tells::Nobody,
};

impl Rig {
    pub(crate) async fn open(engine: &'static Engine, settings: Settings) -> Self {
        Self::open_under(engine, settings, |opened| opened).await
    }

    /// The same, with something between the store and its database until it is opened again.
    pub(crate) async fn open_under(
        engine: &'static Engine,
        settings: Settings,
        wrap: impl FnOnce(Opened) -> Opened,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opening = open_under(engine, folder.path(), settings.clone(), wrap);
        let (store, metrics) = opening.await.unwrap();
        Self {
            engine,
            store,
            metrics,
            settings,
            folder,
        }
    }

    /// A memory store for tests that are not about the store.
    pub(crate) fn memory() -> Arc<Store> {
        let (settings, metrics) = (Settings::default(), Arc::new(Metrics::new()));
        let opened = memory::open(MemoryOptions {
            dedup: settings.dedup,
            dedup_max: settings.dedup_max,
            metrics: Arc::clone(&metrics),
        });
        Arc::new(Store::start(opened, settings.options(metrics)))
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        // The old store must be gone before the new one takes its folder.
        self.store = Self::memory();
        let settings = self.settings.clone();
        (self.store, self.metrics) = open(self.engine, self.folder.path(), settings)
            .await
            .unwrap();
    }

    /// Opens it again with other settings.
    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.reopen().await;
    }

    pub(crate) async fn append(&self, envelope: Envelope) -> Appended {
        append(&self.store, envelope).await
    }

    /// Appends what must be stored.
    pub(crate) async fn stores(&self, envelope: Envelope) {
        let expires_at = envelope.expires_at;
        assert_eq!(
            self.append(envelope).await,
            Appended::Stored { expires_at },
            "{}",
            self.engine.name
        );
    }

    pub(crate) async fn stores_all(&self, mailbox: u8, ids: impl IntoIterator<Item = u32>) {
        let mut pending = Vec::new();
        for id in ids {
            pending.push(self.store.append(blob(mailbox, id), NOW).await.unwrap());
        }
        for outcome in pending {
            assert!(matches!(outcome.await, Ok(Appended::Stored { .. })));
        }
    }

    pub(crate) async fn page(
        &self,
        mailbox: u8,
        view: View,
        after: OrderKey,
        (blobs_max, bytes_max): (u32, u64),
    ) -> Page {
        let bounds = PageBounds {
            blobs_max,
            bytes_max,
        };
        let mailbox = self::mailbox(mailbox);
        self.store
            .page(mailbox, view, after, bounds, NOW)
            .await
            .unwrap()
    }

    /// Everything that the view shows of a mailbox, read in pages of three.
    pub(crate) async fn blobs(&self, mailbox: u8, view: View, now: Timestamp) -> Vec<StoredBlob> {
        let bounds = PageBounds {
            blobs_max: 3,
            ..EVERYTHING
        };
        let mailbox = self::mailbox(mailbox);
        let mut blobs = Vec::new();
        let mut after = OrderKey::START;
        loop {
            let page = self.store.page(mailbox, view, after, bounds, now).await;
            let page = page.unwrap();
            blobs.extend(page.blobs);
            assert!(
                page.next > after || !page.more.is_any(),
                "a page that leads nowhere"
            );
            after = page.next;
            if !page.more.is_any() {
                return blobs;
            }
        }
    }

    /// The ids of [`Rig::blobs`].
    pub(crate) async fn ids(&self, mailbox: u8, view: View, now: Timestamp) -> Vec<u32> {
        let blobs = self.blobs(mailbox, view, now).await;
        blobs.iter().map(|blob| number(blob.id)).collect()
    }

    /// Acknowledges and answers how many blobs that took away.
    pub(crate) async fn acknowledge(&self, mailbox: u8, ids: &[u32], now: Timestamp) -> u64 {
        let ids: Vec<_> = ids.iter().copied().map(id).collect();
        let mailbox = self::mailbox(mailbox);
        let mut blobs = 0;
        for by in [SEEN, SEEN_BY_DEVICE] {
            let acknowledging = self.store.acknowledge(mailbox, ids.clone(), by, now);
            blobs += acknowledging.await.unwrap().await.unwrap().blobs;
        }
        blobs
    }

    pub(crate) async fn purge(&self, mailbox: u8, view: View, now: Timestamp) -> u64 {
        let mailbox = self::mailbox(mailbox);
        self.store
            .purge(mailbox, view, Tells::Nobody, now)
            .await
            .unwrap()
            .blobs
    }

    /// Sweeps in steps of `limit` until nothing is left to sweep; answers how many blobs went.
    pub(crate) async fn sweep(&self, limit: u32, now: Timestamp) -> u64 {
        let mut blobs = 0;
        loop {
            let swept = self.store.expire(limit, now).await.unwrap();
            assert!(swept.blobs <= u64::from(limit), "a step beyond its limit");
            blobs += swept.blobs;
            if !swept.more {
                return blobs;
            }
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// The value of a metric, by its name without `relay_`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("relay_{name} ")));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Rig {
    #[expect(
        clippy::print_stderr,
        reason = "the test runner shows it of a test that fails"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the engine was: {}", self.engine.name);
        } else {
            let usage = self.usage();
            assert!(usage.is_conserved(), "{}: {usage:?}", self.engine.name);
        }
    }
}

async fn open(
    engine: &Engine,
    folder: &Path,
    settings: Settings,
) -> Result<(Arc<Store>, Arc<Metrics>), String> {
    open_under(engine, folder, settings, |opened| opened).await
}

async fn open_under(
    engine: &Engine,
    folder: &Path,
    settings: Settings,
    wrap: impl FnOnce(Opened) -> Opened,
) -> Result<(Arc<Store>, Arc<Metrics>), String> {
    let metrics = Arc::new(Metrics::new());
    let opening = (engine.open)(folder.to_owned(), settings.clone(), Arc::clone(&metrics));
    let opened = wrap(opening.await?);
    let store = Store::start(opened, settings.options(Arc::clone(&metrics)));
    Ok((Arc::new(store), metrics))
}

pub(crate) async fn append(store: &Store, envelope: Envelope) -> Appended {
    let expired_by = envelope.stored_at;
    let appended = store.append(envelope, expired_by).await;
    appended.unwrap().await.unwrap()
}

/// Mailboxes spread over the engine's prefixes like hashes do.
pub(crate) fn mailbox(number: u8) -> MailboxHash {
    MailboxHash::from_bytes([number; 32])
}

pub(crate) fn id(number: u32) -> BlobId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    BlobId::from_bytes(bytes)
}

pub(crate) fn number(id: BlobId) -> u32 {
    let [a, b, c, d, ..] = *id.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// A small blob that everyone sees, stored [`NOW`] for thirty days.
pub(crate) fn blob(mailbox: u8, id: u32) -> Envelope {
    Envelope {
        mailbox: self::mailbox(mailbox),
        id: self::id(id),
        class: Class::SeenByV1,
        owner: None,
        topic: None,
        receipt_to: None,
        stored_at: NOW,
        expires_at: NOW.plus(30 * DAY),
        sealed: Bytes::new(),
        body: format!("blob {id} of mailbox {mailbox}").into(),
    }
}

/// The same with a body of so many bytes.
pub(crate) fn blob_of(mailbox: u8, id: u32, body_bytes: usize) -> Envelope {
    Envelope {
        body: vec![b'x'; body_bytes].into(),
        ..blob(mailbox, id)
    }
}

pub(crate) fn proven_only(envelope: Envelope) -> Envelope {
    Envelope {
        class: Class::ProvenOnly,
        ..envelope
    }
}

pub(crate) fn expiring(envelope: Envelope, expires_at: Timestamp) -> Envelope {
    Envelope {
        expires_at,
        ..envelope
    }
}

pub(crate) fn at(envelope: Envelope, stored_at: Timestamp) -> Envelope {
    Envelope {
        stored_at,
        expires_at: stored_at.plus(30 * DAY),
        ..envelope
    }
}

pub(crate) fn duplicate_of(envelope: &Envelope) -> Appended {
    Appended::Duplicate {
        expires_at: envelope.expires_at,
    }
}

pub(crate) fn quota(change: impl FnOnce(&mut Quota)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings.quota);
    settings
}

pub(crate) fn dedup(dedup: Duration, dedup_max: u64) -> Settings {
    Settings {
        dedup,
        dedup_max,
        ..Settings::default()
    }
}

/// The seam is small: an engine is not much more than its data.
#[test]
fn an_engine_that_keeps_every_promise_takes_less_than_300_lines() {
    let lines = include_str!("scratch.rs").lines().count();
    assert!(lines < 300, "{lines} lines");
}

// Order and pages

#[tokio::test]
async fn a_stored_blob_comes_back_as_it_was_given() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for (class, view) in
            Class::ALL
                .into_iter()
                .zip([View::V1, View::Proven, View::Proven, View::DeviceSync])
        {
            let owner = (class == Class::DeviceSync).then_some(Owner {
                hash: mailbox(77),
                version: u64::MAX,
            });
            let given = Envelope {
                class,
                owner,
                sealed: Bytes::from_static(b"\0sealed\xff"),
                body: Bytes::from_static(b"\0body\xff"),
                ..blob(class as u8, 9)
            };
            rig.stores(given.clone()).await;
            let blobs = rig.blobs(class as u8, view, NOW).await;
            let [got] = blobs.as_slice() else {
                panic!("{} blobs", blobs.len())
            };
            assert!(got.key > OrderKey::START);
            assert_eq!(got.id, given.id);
            assert_eq!(got.class, given.class);
            assert_eq!(got.version, owner.map(|owner| owner.version));
            assert_eq!(got.stored_at, given.stored_at);
            assert_eq!(got.expires_at, given.expires_at);
            assert_eq!(got.sealed, given.sealed);
            assert_eq!(got.body, given.body);
        }
    }
}

#[tokio::test]
async fn an_empty_mailbox_has_an_empty_page_that_ends_where_it_began() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(2, 1)).await;
        let page = rig.page(1, View::Proven, OrderKey(7), (10, 1_000)).await;
        assert!(page.blobs.is_empty() && !page.more.is_any());
        assert_eq!(page.next, OrderKey(7));
    }
}

#[tokio::test]
async fn blobs_come_out_in_the_order_in_which_they_were_stored() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let order = [5, 3, 9, 1, 7, 2];
        for number in order {
            rig.stores(blob(1, number)).await;
            rig.stores(blob(2, number)).await;
        }
        for view in [View::V1, View::Proven] {
            assert_eq!(rig.ids(1, view, NOW).await, order);
        }
        let first = rig.blobs(1, View::Proven, NOW).await;
        let second = rig.blobs(2, View::Proven, NOW).await;
        let keys: Vec<_> = first
            .iter()
            .zip(&second)
            .flat_map(|(a, b)| [a.key, b.key])
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "one order over mailboxes");
    }
}

#[tokio::test]
async fn pending_appends_of_one_caller_keep_the_order_of_its_calls() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let order: Vec<u32> = (0..40).map(|n| n * 17 % 40).collect();
        let mut pending = Vec::new();
        for number in &order {
            pending.push(rig.store.append(blob(1, *number), NOW).await.unwrap());
        }
        for outcome in pending.into_iter().rev() {
            assert!(matches!(outcome.await, Ok(Appended::Stored { .. })));
        }
        assert_eq!(rig.ids(1, View::Proven, NOW).await, order);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_appends_have_one_order_and_no_reader_passes_one_over() {
    const WRITERS: u32 = 8;
    const BLOBS_EACH: u32 = 40;

    /// Follows the mailbox to the last blob, as a session does.
    async fn follow(store: Arc<Store>) -> Vec<u32> {
        let mut seen = Vec::new();
        let mut after = OrderKey::START;
        while seen.len() < (WRITERS * BLOBS_EACH) as usize {
            let bounds = PageBounds {
                blobs_max: 5,
                ..EVERYTHING
            };
            let page = store.page(mailbox(1), View::Proven, after, bounds, NOW);
            let page = page.await.unwrap();
            after = page.next;
            seen.extend(page.blobs.iter().map(|blob| number(blob.id)));
            tokio::task::yield_now().await;
        }
        seen
    }

    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut readers = JoinSet::new();
        for _ in 0..3 {
            readers.spawn(follow(Arc::clone(&rig.store)));
        }
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&rig.store);
            writers.spawn(async move {
                for n in 0..BLOBS_EACH {
                    append(&store, blob(1, writer * 1_000 + n)).await;
                    // Other mailboxes draw keys from the same order.
                    append(&store, blob(100, writer * 1_000 + n)).await;
                }
            });
        }
        writers.join_all().await;
        let seen = tokio::time::timeout(Duration::from_secs(30), readers.join_all()).await;
        let seen = seen.expect("a reader waits for a blob that it passed over");
        let order = rig.ids(1, View::Proven, NOW).await;
        for reader in seen {
            assert_eq!(reader, order, "one order for all readers");
        }
        for writer in 0..WRITERS {
            let own: Vec<_> = order.iter().filter(|id| **id / 1_000 == writer).collect();
            assert!(
                own.is_sorted(),
                "what was confirmed before comes out before"
            );
        }
    }
}

#[tokio::test]
async fn dropping_a_pending_does_not_lose_the_write() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        drop(rig.store.append(blob(1, 1), NOW).await.unwrap());
        rig.stores(blob(1, 2)).await;
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [1, 2]);
        let acknowledgement = rig
            .store
            .acknowledge(mailbox(1), vec![id(1)], SEEN, NOW)
            .await;
        drop(acknowledgement.unwrap());
        rig.stores(blob(1, 3)).await;
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [2, 3]);
    }
}

/// A key that is used twice would be passed over by a session whose cursor stands on its first use.
#[tokio::test]
async fn an_order_key_is_never_used_twice() {
    for engine in ENGINES {
        let mut rig = Rig::open(engine, Settings::default()).await;
        let mut after = OrderKey::START;
        for round in 0..6 {
            rig.stores(blob(1, round)).await;
            let page = rig.page(1, View::Proven, after, (10, 1_000)).await;
            assert_eq!(page.blobs.len(), 1, "round {round}: passed over");
            after = page.next;
            match round % 3 {
                0 => assert_eq!(rig.acknowledge(1, &[round], NOW).await, 1),
                1 => assert_eq!(rig.purge(1, View::Proven, NOW).await, 1),
                _ => assert_eq!(rig.sweep(10, NOW.plus(31 * DAY)).await, 1),
            }
            if engine.reopens && round >= 3 {
                rig.reopen().await;
            }
        }
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_blobs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores_all(1, 0..5).await;
        let page = rig.page(1, View::V1, OrderKey::START, (4, 1_000)).await;
        assert_eq!(page.blobs.len(), 4);
        assert!(page.more.is_any());
        assert_eq!(page.next, page.blobs[3].key);
        let rest = rig.page(1, View::V1, page.next, (4, 1_000)).await;
        assert_eq!(rest.blobs.len(), 1);
        assert!(!rest.more.is_any());
        let whole = rig.page(1, View::V1, OrderKey::START, (5, 1_000)).await;
        assert_eq!(whole.blobs.len(), 5);
        assert!(
            !whole.more.is_any(),
            "exactly as many as fit are all there is"
        );
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_of_bodies_and_sealed_fields() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 0..4 {
            let sealed = Bytes::from_static(&[0; 500]);
            rig.stores(Envelope {
                sealed,
                ..blob_of(1, number, 100)
            })
            .await;
        }
        for (bytes_max, blobs) in [(1200, 2), (1799, 2), (1800, 3), (2399, 3), (2400, 4)] {
            let page = rig.page(1, View::V1, OrderKey::START, (10, bytes_max));
            let page = page.await;
            assert_eq!(page.blobs.len(), blobs, "{bytes_max} bytes");
            assert_eq!(page.more.is_any(), blobs < 4, "{bytes_max} bytes");
            assert_eq!(Some(page.next), page.blobs.last().map(|blob| blob.key));
        }
    }
}

#[tokio::test]
async fn a_page_holds_at_least_one_blob_however_large() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob_of(1, 1, 100_000)).await;
        rig.stores(blob_of(1, 2, 100_000)).await;
        for bounds in [(10, 1), (10, 0), (1, 1_000)] {
            let page = rig.page(1, View::V1, OrderKey::START, bounds).await;
            assert_eq!(page.blobs.len(), 1, "{bounds:?}");
            assert!(page.more.is_any());
            let rest = rig.page(1, View::V1, page.next, bounds).await;
            assert_eq!(rest.blobs.len(), 1, "{bounds:?}");
            assert!(!rest.more.is_any());
        }
    }
}

#[tokio::test]
async fn pages_one_after_another_show_everything_once() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 0..30 {
            let envelope = blob_of(1, number, (number as usize * 37) % 200);
            let envelope = match number % 4 {
                0 => proven_only(envelope),
                1 => expiring(envelope, NOW),
                _ => envelope,
            };
            rig.stores(envelope).await;
        }
        for view in [View::V1, View::Proven] {
            let expected: Vec<u32> = (0..30)
                .filter(|n| n % 4 != 1 && (n % 4 != 0 || view == View::Proven))
                .collect();
            for bounds in [(1, 1_000), (2, 1_000), (7, 150), (100, 100_000)] {
                let mut seen = Vec::new();
                let mut after = OrderKey::START;
                loop {
                    let page = rig.page(1, view, after, bounds).await;
                    seen.extend(page.blobs.iter().map(|blob| number(blob.id)));
                    after = page.next;
                    if !page.more.is_any() {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{view:?} {bounds:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_v1_view_does_not_see_what_is_for_proven_subscribers_and_passes_it_over() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(proven_only(blob(1, 1))).await;
        rig.stores(proven_only(blob(1, 2))).await;
        let all = rig.page(1, View::Proven, OrderKey::START, (10, 1_000));
        let all = all.await;
        let none = rig.page(1, View::V1, OrderKey::START, (10, 1_000)).await;
        assert!(none.blobs.is_empty() && !none.more.is_any());
        assert_eq!(none.next, all.next, "the cursor passes over");

        rig.stores(blob(1, 3)).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [3]);
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [1, 2, 3]);
        let next = rig.page(1, View::V1, none.next, (10, 1_000)).await;
        assert_eq!(next.blobs.len(), 1);
    }
}

#[tokio::test]
async fn mailboxes_with_a_common_prefix_are_different_mailboxes() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut bytes = [1; 32];
        bytes[31] = 99;
        let twin = MailboxHash::from_bytes(bytes);
        assert_eq!(twin.prefix64(), mailbox(1).prefix64());

        for number in [1, 2] {
            rig.stores(blob(1, number)).await;
            let mailbox = twin;
            rig.stores(Envelope {
                mailbox,
                body: Bytes::from_static(b"of the twin"),
                ..blob(1, number)
            })
            .await;
        }
        assert_eq!(rig.acknowledge(1, &[1], NOW).await, 1);
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [2]);
        assert_eq!(rig.purge(1, View::Proven, NOW).await, 1);
        let page = rig
            .store
            .page(twin, View::V1, OrderKey::START, EVERYTHING, NOW);
        let page = page.await.unwrap();
        assert_eq!(page.blobs.len(), 2);
        assert!(
            page.blobs
                .iter()
                .all(|blob| &blob.body[..] == b"of the twin")
        );
    }
}

// Acknowledge and purge

#[tokio::test]
async fn an_acknowledgement_deletes_in_its_own_mailbox_only() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for mailbox in [1, 2] {
            rig.stores_all(mailbox, 1..=3).await;
        }
        assert_eq!(rig.acknowledge(1, &[1, 3], NOW).await, 2);
        assert_eq!(rig.ids(1, View::V1, NOW).await, [2]);
        assert_eq!(rig.ids(2, View::V1, NOW).await, [1, 2, 3]);
        assert_eq!(rig.usage().acknowledged, 2);
        assert_eq!(rig.usage().stored, 4);
    }
}

#[tokio::test]
async fn acknowledging_what_is_gone_is_fine() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(1, 1)).await;
        assert_eq!(rig.acknowledge(1, &[], NOW).await, 0);
        assert_eq!(rig.acknowledge(1, &[2], NOW).await, 0);
        assert_eq!(rig.acknowledge(2, &[1], NOW).await, 0);
        assert_eq!(rig.acknowledge(1, &[1, 2, 1], NOW).await, 1);
        assert_eq!(rig.acknowledge(1, &[1], NOW).await, 0);
        assert_eq!(rig.usage().acknowledged, 1);
    }
}

#[tokio::test]
async fn a_purge_takes_what_its_view_sees() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores_all(1, [1, 3]).await;
        rig.stores(proven_only(blob(1, 2))).await;
        rig.stores(blob(2, 1)).await;
        assert_eq!(rig.purge(1, View::V1, NOW).await, 2);
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [2]);
        rig.stores(blob(1, 4)).await;
        assert_eq!(rig.purge(1, View::Proven, NOW).await, 2);
        assert_eq!(rig.purge(1, View::Proven, NOW).await, 0);
        assert_eq!(rig.ids(2, View::Proven, NOW).await, [1]);
        assert_eq!(rig.usage().purged, 4);
    }
}

#[tokio::test]
async fn a_purge_of_a_large_mailbox_leaves_what_is_stored_after_it() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores_all(1, 0..1_500).await;
        assert_eq!(rig.purge(1, View::V1, NOW).await, 1_500);
        rig.stores(blob(1, 9_999)).await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [9_999]);
    }
}

/// With a sender that never stops a purge that also took what comes after it might never end.
#[tokio::test]
async fn a_purge_leaves_what_is_stored_while_it_runs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores_all(1, 0..1_500).await;
        let purge = rig.purge(1, View::V1, NOW);
        let during = async {
            // The purge was polled first and has begun.
            rig.stores_all(1, 5_000..5_010).await;
        };
        let (purged, ()) = futures_util::future::join(purge, during).await;
        assert_eq!(purged, 1_500);
        assert_eq!(rig.ids(1, View::V1, NOW).await.len(), 10);
    }
}

// Expiry

#[tokio::test]
async fn a_blob_is_invisible_from_the_moment_it_expires() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let expires_at = NOW.plus(Duration::from_millis(1_234_567));
        rig.stores(expiring(blob(1, 1), expires_at)).await;
        rig.stores(expiring(blob(1, 2), expires_at.plus(HOUR)))
            .await;
        let before = expires_at.minus(Duration::from_millis(1));
        assert_eq!(rig.ids(1, View::V1, before).await, [1, 2]);
        assert_eq!(rig.ids(1, View::V1, expires_at).await, [2]);
        assert_eq!(rig.usage().stored, 2, "invisible is not swept yet");

        let page = rig.store.page(
            mailbox(1),
            View::V1,
            OrderKey::START,
            EVERYTHING,
            expires_at.plus(HOUR),
        );
        let page = page.await.unwrap();
        assert!(page.blobs.is_empty() && !page.more.is_any());
        assert!(page.next > OrderKey(1), "the cursor passes over");
    }
}

#[tokio::test]
async fn the_sweep_never_takes_what_has_not_expired() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let expires_at = NOW.plus(Duration::from_millis(1_234_567));
        rig.stores(expiring(blob(1, 1), expires_at)).await;
        let before = expires_at.minus(Duration::from_millis(1));
        assert_eq!(rig.sweep(256, before).await, 0);
        assert_eq!(rig.ids(1, View::V1, before).await, [1]);
        assert_eq!(rig.sweep(256, expires_at.plus(HOUR)).await, 1);
    }
}

#[tokio::test]
async fn the_sweep_gives_back_space_and_quota() {
    let settings = quota(|quota| {
        quota.mailbox_blobs_max = 3;
        quota.relay_bytes_max = 4 * 1_000;
    });
    for engine in ENGINES {
        let rig = Rig::open(engine, settings.clone()).await;
        for number in 0..3 {
            rig.stores(expiring(blob_of(1, number, 744), NOW.plus(HOUR)))
                .await;
        }
        rig.stores(blob_of(2, 9, 744)).await;
        assert_eq!(rig.append(blob_of(1, 5, 744)).await, Appended::MailboxFull);
        assert_eq!(rig.append(blob_of(3, 5, 744)).await, Appended::RelayFull);

        let later = NOW.plus(2 * HOUR);
        assert_eq!(rig.sweep(256, later).await, 3);
        assert_eq!(rig.usage().expired, 3);
        assert_eq!(rig.usage().stored, 1);
        assert_eq!(rig.usage().bytes, 1_000);
        for number in 10..13 {
            rig.stores(at(blob_of(1, number, 744), later)).await;
        }
    }
}

#[tokio::test]
async fn the_sweep_goes_in_steps_with_the_oldest_expiry_first() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        // Over many mailboxes, so that no engine's shards make this order by chance.
        for number in 0..20_u8 {
            let hours = u32::from(number) * 7 % 20 + 1;
            let envelope = blob(number * 11, hours);
            rig.stores(expiring(envelope, NOW.plus(hours * HOUR))).await;
        }
        let later = NOW.plus(17 * HOUR + HOUR / 2);
        for step in 1..=17 {
            let swept = rig.store.expire(1, later).await.unwrap();
            assert_eq!(swept.blobs, 1, "step {step}");
            assert_eq!(swept.more, step < 17, "step {step}");
            let next = (step == 17).then(|| NOW.plus(18 * HOUR));
            assert_eq!(swept.next_expiry, next, "step {step}");
            let mailbox = (0..20_u8).find(|n| u32::from(*n) * 7 % 20 + 1 == step);
            let mailbox = mailbox.unwrap() * 11;
            let gone = rig.acknowledge(mailbox, &[step], later).await == 0;
            assert!(gone, "step {step} took another one");
        }
        assert_eq!(rig.sweep(256, later).await, 0);
        assert_eq!(rig.usage().stored, 3);
        assert_eq!(rig.sweep(256, NOW.plus(22 * HOUR)).await, 3);
        let swept = rig.store.expire(1, NOW.plus(22 * HOUR)).await.unwrap();
        assert_eq!(swept.next_expiry, None, "nothing is kept");
    }
}

/// What has left may be in the way for a while: one sweep ended there.
#[tokio::test]
async fn one_sweep_finds_what_has_expired_behind_what_has_left() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for id in 1..=3 {
            rig.stores(expiring(blob(1, id), NOW.plus(2 * HOUR))).await;
        }
        assert_eq!(rig.acknowledge(1, &[1, 2, 3], NOW).await, 3);
        for id in 4..=6 {
            rig.stores(expiring(blob(1, id), NOW.plus(3 * HOUR))).await;
        }
        assert_eq!(rig.sweep(2, NOW.plus(5 * HOUR)).await, 3);
    }
}

#[tokio::test]
async fn a_full_mailbox_first_loses_its_own_expired_blobs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 3)).await;
        rig.stores(expiring(blob(1, 1), NOW.plus(HOUR))).await;
        rig.stores(blob(1, 2)).await;
        rig.stores(expiring(blob(1, 3), NOW.plus(HOUR))).await;
        rig.stores(expiring(blob(2, 1), NOW.plus(HOUR))).await;
        assert_eq!(rig.append(blob(1, 4)).await, Appended::MailboxFull);

        let later = NOW.plus(2 * HOUR);
        rig.stores(at(blob(1, 4), later)).await;
        assert_eq!(rig.ids(1, View::V1, later).await, [2, 4]);
        assert_eq!(rig.usage().expired, 2, "its own, and not the neighbour's");
        rig.stores(at(blob(1, 5), later)).await;
        assert_eq!(
            rig.append(at(blob(1, 6), later)).await,
            Appended::MailboxFull
        );
    }
}

#[tokio::test]
async fn a_mailbox_full_of_bytes_loses_its_expired_blobs_too() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_bytes_max = 1_000)).await;
        rig.stores(expiring(blob_of(1, 1, 744), NOW.plus(HOUR)))
            .await;
        assert_eq!(rig.append(blob_of(1, 2, 0)).await, Appended::MailboxFull);
        rig.stores(at(blob_of(1, 2, 744), NOW.plus(2 * HOUR))).await;
        assert_eq!(rig.usage().bytes, 1_000);
    }
}

#[tokio::test]
async fn what_has_expired_may_still_be_acknowledged_before_the_sweep_and_a_purge_finds_it_expired()
{
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 1..=3 {
            rig.stores(expiring(blob(1, number), NOW.plus(HOUR))).await;
        }
        let later = NOW.plus(2 * HOUR);
        assert_eq!(rig.acknowledge(1, &[2], later).await, 1);
        assert_eq!(rig.purge(1, View::V1, later).await, 2);
        assert_eq!(rig.sweep(256, later).await, 0);
        let usage = rig.usage();
        assert_eq!((usage.acknowledged, usage.purged, usage.expired), (1, 0, 2));
    }
}

// Quotas

/// Hands in every envelope at once, each from a task of its own, and counts the answers: stored,
/// and `full`.
pub(crate) async fn race(rig: &Rig, envelopes: Vec<Envelope>, full: Appended) -> (usize, usize) {
    let mut senders = JoinSet::new();
    for envelope in envelopes {
        let store = Arc::clone(&rig.store);
        senders.spawn(async move { append(&store, envelope).await });
    }
    let answers = senders.join_all().await;
    let stored = answers
        .iter()
        .filter(|answer| matches!(answer, Appended::Stored { .. }))
        .count();
    let refused = answers.iter().filter(|answer| **answer == full).count();
    assert_eq!(stored + refused, answers.len(), "{answers:?}");
    (stored, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mailbox_never_holds_a_blob_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 10)).await;
        let envelopes = (0..32).map(|number| blob(1, number)).collect();
        assert_eq!(race(&rig, envelopes, Appended::MailboxFull).await, (10, 22));
        assert_eq!(rig.ids(1, View::V1, NOW).await.len(), 10);
        assert_eq!(rig.usage().stored, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mailbox_never_holds_a_byte_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_bytes_max = 10_999)).await;
        let envelopes = (0..32).map(|number| blob_of(1, number, 744)).collect();
        assert_eq!(race(&rig, envelopes, Appended::MailboxFull).await, (10, 22));
        assert_eq!(rig.usage().bytes, 10_000);
        rig.stores(blob_of(1, 100, 743)).await;
        assert_eq!(rig.append(blob_of(1, 101, 0)).await, Appended::MailboxFull);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_relay_never_holds_a_byte_too_many() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.relay_bytes_max = 50_256)).await;
        let envelopes = (0..32 * 4)
            .map(|number| blob_of(u8::try_from(number % 32).unwrap(), number, 744))
            .collect();
        assert_eq!(race(&rig, envelopes, Appended::RelayFull).await, (50, 78));
        assert_eq!(rig.usage().bytes, 50_000);
        assert_eq!(rig.append(blob_of(40, 1, 1)).await, Appended::RelayFull);
        rig.stores(blob_of(40, 1, 0)).await;
        assert_eq!(rig.usage().bytes, 50_256);
    }
}

#[tokio::test]
async fn what_v1_sees_and_what_it_does_not_are_counted_apart() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 2)).await;
        for number in 1..=2 {
            rig.stores(blob(1, number)).await;
            rig.stores(proven_only(blob(1, number + 10))).await;
        }
        assert_eq!(rig.append(blob(1, 3)).await, Appended::MailboxFull);
        assert_eq!(
            rig.append(proven_only(blob(1, 13))).await,
            Appended::MailboxFull
        );
        assert_eq!(rig.acknowledge(1, &[11], NOW).await, 1);
        assert_eq!(rig.append(blob(1, 3)).await, Appended::MailboxFull);
        rig.stores(proven_only(blob(1, 13))).await;
    }
}

#[tokio::test]
async fn acknowledgement_and_purge_give_back_quota() {
    let settings = quota(|quota| {
        quota.mailbox_bytes_max = 2_000;
        quota.relay_bytes_max = 2_000;
    });
    for engine in ENGINES {
        let rig = Rig::open(engine, settings.clone()).await;
        for round in 0..3 {
            rig.stores(blob_of(1, 10 * round, 744)).await;
            rig.stores(blob_of(1, 10 * round + 1, 744)).await;
            let full = rig.append(blob_of(1, 999, 0)).await;
            assert_eq!(full, Appended::MailboxFull);
            let full = rig.append(blob_of(2, 999, 0)).await;
            assert_eq!(full, Appended::RelayFull);
            if round % 2 == 0 {
                let ids = [10 * round, 10 * round + 1];
                assert_eq!(rig.acknowledge(1, &ids, NOW).await, 2);
            } else {
                assert_eq!(rig.purge(1, View::V1, NOW).await, 2);
            }
            assert_eq!(rig.usage().bytes, 0);
        }
    }
}

#[tokio::test]
async fn zero_means_no_bound() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| *quota = UNBOUNDED)).await;
        rig.stores_all(1, 0..1_200).await;
        rig.stores(blob_of(1, 5_000, 3 << 20)).await;
        assert_eq!(rig.usage().stored, 1_201);
    }
}

#[tokio::test]
async fn every_row_counts_its_bytes_and_256_more() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_bytes_max = 1_000)).await;
        rig.stores(blob_of(1, 1, 0)).await;
        assert_eq!(rig.usage().bytes, 256);
        assert_eq!(ROW_OVERHEAD_BYTES, 256);
        let sealed = Bytes::from_static(&[0; 10]);
        rig.stores(Envelope {
            sealed,
            ..blob_of(1, 2, 100)
        })
        .await;
        assert_eq!(rig.usage().bytes, 256 + 366);
        rig.stores(blob_of(1, 3, 0)).await;
        assert_eq!(rig.append(blob_of(1, 4, 0)).await, Appended::MailboxFull);
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1, 2, 3]);
    }
}

// Idempotency

#[tokio::test]
async fn a_repeat_of_a_kept_blob_is_a_duplicate_with_the_first_expiry() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 1)).await;
        let first = blob(1, 1);
        rig.stores(first.clone()).await;
        let again = at(first.clone(), NOW.plus(DAY));
        assert_ne!(again.expires_at, first.expires_at);
        assert_eq!(rig.append(again).await, duplicate_of(&first));
        // A repeat keeps the first one's class, and what is sealed beside it is not compared.
        let resealed = Envelope {
            sealed: Bytes::from_static(b"sealed anew"),
            ..proven_only(first.clone())
        };
        assert_eq!(rig.append(resealed).await, duplicate_of(&first));
        assert_eq!(rig.usage().created, 1);
        let blobs = rig.blobs(1, View::V1, NOW).await;
        assert_eq!(blobs.len(), 1);
        assert_eq!(blobs[0].expires_at, first.expires_at);
    }
}

#[tokio::test]
async fn a_repeat_of_a_departed_blob_is_a_duplicate_whatever_the_way_it_left() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(2 * DAY, 1_000)).await;
        let later = NOW.plus(DAY);
        let blobs: Vec<_> = (1..=3)
            .map(|number| expiring(blob(1, number), NOW.plus(HOUR)))
            .collect();
        for envelope in &blobs {
            rig.stores(envelope.clone()).await;
        }
        let repeats = async || {
            for envelope in &blobs {
                let repeat = at(envelope.clone(), later);
                assert_eq!(rig.append(repeat).await, duplicate_of(envelope));
                let other = Envelope {
                    body: Bytes::from_static(b"another"),
                    ..at(envelope.clone(), later)
                };
                assert_eq!(rig.append(other).await, Appended::IdReused);
            }
        };
        repeats().await;
        rig.acknowledge(1, &[1], later).await;
        repeats().await;
        rig.sweep(1, later).await;
        repeats().await;
        assert!(rig.ids(1, View::V1, later).await.is_empty());
        assert_eq!(rig.usage().created, 3);

        let purged = at(blob(1, 4), later);
        rig.stores(purged.clone()).await;
        rig.purge(1, View::V1, later).await;
        assert_eq!(rig.append(purged.clone()).await, duplicate_of(&purged));
    }
}

#[tokio::test]
async fn a_departed_blob_is_forgotten_after_the_dedup_time() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(DAY, 1_000)).await;
        let first = blob(1, 1);
        rig.stores(first.clone()).await;
        // Counted from when it left, not from when it was stored.
        let left_at = NOW.plus(5 * DAY);
        rig.acknowledge(1, &[1], left_at).await;
        let second = Duration::from_secs(1);

        let still = left_at.plus(DAY).minus(second);
        rig.sweep(256, still).await;
        let repeat = at(first.clone(), still);
        assert_eq!(rig.append(repeat).await, duplicate_of(&first));
        assert!((rig.metric("dedup_remembered") - 1.0).abs() < 0.1);

        let forgotten = left_at.plus(DAY).plus(second);
        rig.sweep(256, forgotten).await;
        assert!(rig.metric("dedup_remembered") < 0.1);
        let another = Envelope {
            body: Bytes::from_static(b"another"),
            ..at(first, forgotten)
        };
        rig.stores(another).await;
        assert!(rig.metric("dedup_forgotten_total") < 0.1);
    }
}

#[tokio::test]
async fn a_blob_that_left_twice_is_remembered_from_the_last_time() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(DAY, 1_000)).await;
        rig.stores(blob(1, 1)).await;
        rig.acknowledge(1, &[1], NOW).await;
        let again = at(blob(1, 1), NOW.plus(2 * DAY));
        rig.sweep(256, again.stored_at).await;
        rig.stores(again.clone()).await;
        rig.acknowledge(1, &[1], again.stored_at).await;
        let later = again.stored_at.plus(HOUR);
        rig.sweep(256, later).await;
        let repeat = at(blob(1, 1), later);
        assert_eq!(rig.append(repeat).await, duplicate_of(&again));
    }
}

#[tokio::test]
async fn of_too_many_departed_blobs_the_oldest_are_forgotten_first() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(DAY, 3)).await;
        rig.stores_all(1, 1..=5).await;
        for (nth, number) in [4, 2, 5, 1, 3].into_iter().enumerate() {
            let left_at = NOW.plus(Duration::from_secs(nth as u64));
            rig.acknowledge(1, &[number], left_at).await;
        }
        let later = NOW.plus(HOUR);
        rig.sweep(256, later).await;
        assert!((rig.metric("dedup_remembered") - 3.0).abs() < 0.1);
        assert!((rig.metric("dedup_forgotten_total") - 2.0).abs() < 0.1);
        let age = rig.metric("dedup_memory_seconds");
        assert!((age - 3_598.0).abs() < 1.5, "{age}");
        for number in [5, 1, 3] {
            let first = blob(1, number);
            let repeat = at(first.clone(), later);
            assert_eq!(rig.append(repeat).await, duplicate_of(&first));
        }
        for number in [4, 2] {
            rig.stores(at(blob(1, number), later)).await;
        }
    }
}

#[tokio::test]
async fn another_blob_under_a_known_id_is_refused() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(1, 1)).await;
        assert_eq!(rig.append(blob_of(1, 1, 5)).await, Appended::IdReused);
        rig.acknowledge(1, &[1], NOW).await;
        assert_eq!(rig.append(blob_of(1, 1, 5)).await, Appended::IdReused);
        assert_eq!(rig.usage().created, 1);
    }
}

#[tokio::test]
async fn one_id_in_two_mailboxes_is_two_blobs() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob_of(1, 1, 5)).await;
        rig.stores(blob_of(2, 1, 5)).await;
        rig.acknowledge(1, &[1], NOW).await;
        rig.stores(blob_of(3, 1, 5)).await;
        assert_eq!(rig.ids(2, View::V1, NOW).await, [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_repeats_one_is_stored() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        for number in 0..20 {
            let envelopes = vec![blob(1, number); 8];
            let duplicate = duplicate_of(&blob(1, number));
            assert_eq!(race(&rig, envelopes, duplicate).await, (1, 7));
        }
        assert_eq!(rig.usage().created, 20);
        assert!((rig.metric("duplicates_total") - 140.0).abs() < 0.1);
    }
}

/// The rows of one batch are not in the index yet when the next of the batch is judged.
#[tokio::test]
async fn a_repeat_handed_in_before_the_first_is_durable_is_a_duplicate() {
    for engine in ENGINES {
        let rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 2)).await;
        let mut pending = Vec::new();
        for envelope in [
            blob(1, 1),
            blob(1, 1),
            blob_of(1, 1, 3),
            blob(1, 2),
            blob(1, 3),
        ] {
            pending.push(rig.store.append(envelope, NOW).await.unwrap());
        }
        let mut answers = Vec::new();
        for outcome in pending {
            answers.push(outcome.await.unwrap());
        }
        let expires_at = blob(1, 1).expires_at;
        assert_eq!(
            answers,
            [
                Appended::Stored { expires_at },
                Appended::Duplicate { expires_at },
                Appended::IdReused,
                Appended::Stored { expires_at },
                Appended::MailboxFull,
            ]
        );
    }
}

// Waking

/// A wake that came before the commit would send a session back to sleep before an empty mailbox;
/// one that came under a lock of the store would stop everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mailbox_is_woken_after_its_blob_is_visible() {
    for engine in ENGINES {
        let store: Arc<OnceLock<Arc<Store>>> = Arc::default();
        let (seen, mut wakes) = mpsc::unbounded_channel();
        let reader = Arc::clone(&store);
        let runtime = tokio::runtime::Handle::current();
        let news: OnNews = Arc::new(move |news: &[NewRow<'_>]| {
            // On a thread of its own, because a lock that is held would not yield to a timeout.
            let (store, mailbox) = (Arc::clone(reader.get().unwrap()), news[0].envelope.mailbox);
            let (answer, answered) = std::sync::mpsc::channel();
            let runtime = runtime.clone();
            std::thread::spawn(move || {
                let page = store.page(mailbox, View::Proven, OrderKey::START, EVERYTHING, NOW);
                answer.send(runtime.block_on(page).map(|page| page.blobs.len()))
            });
            let patience = Duration::from_secs(20);
            let wait = || answered.recv_timeout(patience);
            // Where the committer shares the runtime's threads, the read needs one of them.
            let blobs = match tokio::runtime::Handle::current().runtime_flavor() {
                RuntimeFlavor::MultiThread => tokio::task::block_in_place(wait),
                _ => wait(),
            };
            seen.send((mailbox, blobs)).unwrap();
        });
        let settings = Settings {
            news,
            ..Settings::default()
        };
        let rig = Rig::open(engine, settings).await;
        store.set(Arc::clone(&rig.store)).ok().unwrap();

        for count in 1..=3 {
            rig.stores(blob(1, count)).await;
            let (woken, blobs) = wakes.recv().await.unwrap();
            assert_eq!(woken, mailbox(1));
            let blobs = blobs.expect("the store is locked while it wakes");
            assert_eq!(blobs.unwrap(), count as usize);
        }
    }
}

#[tokio::test]
async fn only_what_is_stored_wakes_its_mailbox() {
    for engine in ENGINES {
        let (seen, mut wakes) = mpsc::unbounded_channel();
        let mut settings = quota(|quota| quota.mailbox_blobs_max = 1);
        settings.news = Arc::new(move |news| {
            for row in news {
                seen.send(row.envelope.mailbox).unwrap();
            }
        });
        let rig = Rig::open(engine, settings).await;
        rig.stores(blob(1, 1)).await;
        assert_eq!(wakes.recv().await, Some(mailbox(1)));

        let first = blob(1, 1);
        assert_eq!(rig.append(first.clone()).await, duplicate_of(&first));
        assert_eq!(rig.append(blob_of(1, 1, 5)).await, Appended::IdReused);
        assert_eq!(rig.append(blob(1, 2)).await, Appended::MailboxFull);
        rig.acknowledge(1, &[1], NOW).await;
        assert_eq!(rig.append(first.clone()).await, duplicate_of(&first));
        // Wakes come in the order of commits, so a wake for the repeats would come before this.
        rig.stores(blob(2, 1)).await;
        assert_eq!(wakes.recv().await, Some(mailbox(2)));
        assert!(wakes.try_recv().is_err());
    }
}

// Counting

#[tokio::test]
async fn the_metrics_tell_what_happened() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(DAY, 1_000)).await;
        for number in 0..6 {
            rig.stores(blob_of(1, number, 744)).await;
        }
        rig.stores(expiring(blob_of(2, 1, 744), NOW.plus(HOUR)))
            .await;
        rig.append(blob_of(1, 0, 744)).await;
        rig.acknowledge(1, &[0, 1, 77], NOW).await;
        let later = NOW.plus(2 * HOUR);
        rig.sweep(256, later).await;
        let expected = [
            ("blobs_stored", 4.0),
            ("blobs_stored_at_start", 0.0),
            ("stored_bytes", 4_000.0),
            ("blobs_created_total", 7.0),
            ("blobs_acknowledged_total", 2.0),
            ("blobs_purged_total", 0.0),
            ("blobs_expired_total", 1.0),
            ("blobs_lost_total", 0.0),
            ("duplicates_total", 1.0),
            ("dedup_remembered", 3.0),
            ("dedup_memory_seconds", 7_200.0),
            ("store_up", 1.0),
        ];
        for (name, value) in expected {
            let got = rig.metric(name);
            assert!((got - value).abs() < 0.1, "{name} is {got}, not {value}");
        }
        rig.purge(1, View::V1, later).await;
        assert!((rig.metric("blobs_purged_total") - 4.0).abs() < 0.1);
        assert!(rig.metric("blobs_stored") < 0.1);
        assert!(rig.metric("stored_bytes") < 0.1);
    }
}

/// Conservation is looked at by a scrape at any moment, not only when all is quiet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_sums_hold_at_every_moment() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        let mut writers = JoinSet::new();
        for writer in 1..=4 {
            let store = Arc::clone(&rig.store);
            writers.spawn(async move {
                for number in 0..100 {
                    append(&store, blob(writer, number)).await;
                    let acknowledgement =
                        store.acknowledge(mailbox(writer), vec![id(number)], SEEN, NOW);
                    acknowledgement.await.unwrap().await.unwrap();
                }
            });
        }
        while writers.try_join_next().is_none() {
            let usage = rig.usage();
            assert!(usage.is_conserved(), "{usage:?}");
            tokio::task::yield_now().await;
        }
        writers.join_all().await;
        assert_eq!(rig.usage().acknowledged, 400);
    }
}

// Time, end and restart

#[tokio::test]
async fn only_the_times_that_are_passed_in_count() {
    for engine in ENGINES {
        for now in [
            Timestamp::from_millis(1),
            // The year 9999.
            Timestamp::from_millis(253_402_300_000_000),
        ] {
            let rig = Rig::open(engine, Settings::default()).await;
            let first = Envelope {
                stored_at: now,
                expires_at: now.plus(HOUR),
                ..blob(1, 1)
            };
            rig.stores(first.clone()).await;
            rig.store.probe().await.unwrap();
            assert_eq!(rig.sweep(256, now).await, 0);
            assert_eq!(rig.ids(1, View::V1, now).await, [1]);
            rig.acknowledge(1, &[1], now).await;
            assert_eq!(rig.append(first.clone()).await, duplicate_of(&first));
            let later = now.plus(3 * HOUR);
            assert_eq!(rig.sweep(256, later).await, 0);
            rig.stores(at(first, later)).await;
        }
    }
}

#[tokio::test]
async fn a_clock_that_steps_back_harms_nothing() {
    for engine in ENGINES {
        let rig = Rig::open(engine, dedup(HOUR, 1_000)).await;
        rig.stores(blob(1, 1)).await;
        rig.acknowledge(1, &[1], NOW).await;
        let before = NOW.minus(DAY);
        rig.sweep(256, before).await;
        let repeat = at(blob(1, 1), before);
        assert_eq!(rig.append(repeat).await, duplicate_of(&blob(1, 1)));
        rig.stores(at(blob(1, 2), before)).await;
        assert_eq!(rig.ids(1, View::V1, before).await, [2]);
    }
}

#[tokio::test]
async fn a_closed_store_has_finished_its_writes_and_refuses_later_ones() {
    for engine in ENGINES {
        let rig = Rig::open(engine, Settings::default()).await;
        rig.store.probe().await.unwrap();
        let pending = rig.store.append(blob(1, 1), NOW).await.unwrap();
        rig.store.close().await;
        assert!(matches!(pending.await, Ok(Appended::Stored { .. })));

        let later = async {
            let pending = rig.store.append(blob(1, 2), NOW).await?;
            pending.await
        };
        assert!(matches!(later.await, Err(StoreError::Closed)));
        let later = async {
            let pending = rig
                .store
                .acknowledge(mailbox(1), vec![id(1)], SEEN, NOW)
                .await?;
            pending.await
        };
        assert!(matches!(later.await, Err(StoreError::Closed)));
        let later = rig
            .store
            .purge(mailbox(1), View::V1, Tells::Nobody, NOW)
            .await;
        assert!(matches!(later, Err(StoreError::Closed)));
        let later = rig.store.expire(256, NOW).await;
        assert!(matches!(later, Err(StoreError::Closed)));
        assert!(rig.store.probe().await.is_err());
        assert!(rig.metric("store_up") < 0.1);
        assert_eq!(rig.usage().stored, 1);
        rig.store.close().await;
    }
}

#[tokio::test]
async fn a_restart_keeps_blobs_order_and_quota() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, quota(|quota| quota.mailbox_blobs_max = 3)).await;
        rig.stores_all(1, [3, 1]).await;
        rig.stores(proven_only(blob(1, 2))).await;
        let before = rig.blobs(1, View::Proven, NOW).await;
        let bytes = rig.usage().bytes;
        rig.reopen().await;

        let usage = rig.usage();
        assert_eq!((usage.stored_at_start, usage.created), (3, 0));
        assert_eq!((usage.stored, usage.bytes), (3, bytes));
        assert!((rig.metric("blobs_stored_at_start") - 3.0).abs() < 0.1);
        let after = rig.blobs(1, View::Proven, NOW).await;
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.key, before.id), (after.key, after.id));
            assert_eq!(before.body, after.body);
        }
        rig.stores(blob(1, 4)).await;
        assert_eq!(rig.append(blob(1, 5)).await, Appended::MailboxFull);
        assert_eq!(rig.ids(1, View::Proven, NOW).await, [3, 1, 2, 4]);
    }
}

#[tokio::test]
async fn a_restart_forgets_no_departure() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, dedup(DAY, 3)).await;
        rig.stores_all(1, 1..=5).await;
        for number in 1..=5 {
            rig.acknowledge(1, &[number], NOW).await;
        }
        rig.reopen().await;
        rig.sweep(256, NOW).await;
        assert!((rig.metric("dedup_remembered") - 3.0).abs() < 0.1);
        for number in 3..=5 {
            let first = blob(1, number);
            assert_eq!(rig.append(first.clone()).await, duplicate_of(&first));
            assert_eq!(rig.append(blob_of(1, number, 1)).await, Appended::IdReused);
        }
        let later = NOW.plus(2 * DAY);
        rig.sweep(256, later).await;
        rig.stores(at(blob(1, 5), later)).await;
    }
}

/// Under another secret every mailbox would look empty: total, silent loss.
#[tokio::test]
async fn a_store_does_not_open_under_another_secret() {
    for engine in durable_engines() {
        let mut rig = Rig::open(engine, Settings::default()).await;
        rig.stores(blob(1, 1)).await;
        rig.store.close().await;
        rig.store = Rig::memory();
        let other = Settings {
            secret: Secret::from_bytes([8; 32]),
            ..Settings::default()
        };
        let refused = open(engine, rig.folder.path(), other).await;
        assert!(refused.is_err());
        rig.reopen().await;
        assert_eq!(rig.ids(1, View::V1, NOW).await, [1]);
    }
}
