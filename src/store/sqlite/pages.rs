//! Reading: pages of mailboxes, and what is due to be removed. Only on read-only connections, so
//! that no reader waits for the committer and none delays it.

use foldhash::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::columns::{Kind, expiry_slot, sql_version, timestamp, to_i64, to_u64, version_of};
use super::errors::is_damage;
use super::files::Files;
use super::guard::{SOUND_COLUMNS, sound};
use super::open::reader_options;
use super::pins::read_pins;
use super::recovery::read_proofs;
use super::rows::Sized;
use super::runs::{SELECT_HOLDINGS, entries_of, entry, last_key};
use super::scrub::{Misplaced, Slice, check_slice, misplaced_of};
use super::tail::{Entry, Tail};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::engine::Pin;
use crate::store::model::{
    BacklogCursor, Class, Holding, OrderKey, PageBounds, ROW_OVERHEAD_BYTES, RecoveryPage,
    StoredBlob, View,
};
use crate::store::sql::quarantine::Look;

/// Connections for pages. Each is a thread with 8 MiB of cache.
const READERS: u32 = 3;

/// How long a page waits for a connection.
const READER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Index entries that one step of a page looks at: as many as are asked for, within these.
const SCAN_ROWS: (u32, u32) = (128, 1_024);

/// Entries that one step of a listing of keys looks at.
const KEYS_SCAN: u32 = 1_024;

/// Expired rows that are looked at together.
const EXPIRED_ROWS: u32 = 1_024;

static SELECT_ROWS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        &format!("SELECT {SOUND_COLUMNS} FROM blob WHERE seq IN ("),
        "?",
        ")",
    )
});

/// The read-only connections.
#[derive(Debug)]
pub(super) struct Readers {
    files: Arc<Files>,
    path: PathBuf,
    pool: SqlitePool,
    tail: Arc<Tail>,
}

/// Which rows the next step of a page reads.
#[derive(Debug, Default)]
pub(super) struct Cut<C = OrderKey> {
    /// In order, each with where it leaves the reader.
    pub(super) entries: Vec<(i64, C)>,
    /// Everything up to here was looked at.
    pub(super) next: C,
    /// Whether there is more behind that.
    pub(super) more: bool,
    /// Whether the next one is left out because it did not fit.
    pub(super) is_full: bool,
}

/// An entry, and where it leaves the reader.
struct Reached<C> {
    cursor: C,
    entry: Entry,
}

impl<C: Copy> Cut<C> {
    /// Which of the entries fit; `is_first` says that one is taken however large it is.
    fn of(
        entries: Vec<Reached<C>>,
        after: C,
        view: View,
        bounds: PageBounds,
        (is_first, now): (bool, Timestamp),
    ) -> Self {
        let mut cut = Self {
            entries: Vec::new(),
            next: after,
            more: entries.len() >= scan_rows(bounds) as usize,
            is_full: false,
        };
        let mut bytes = 0;
        for Reached { cursor, entry } in entries {
            let size = entry.size;
            let is_shown = view.shows(size.class());
            if is_shown && entry.slot >= expiry_slot(now) {
                let is_least = is_first && cut.entries.is_empty();
                let fits = to_i64(cut.entries.len() as u64) < i64::from(bounds.blobs_max)
                    && bytes + size.bytes() <= bounds.bytes_max;
                if !fits && !is_least {
                    (cut.more, cut.is_full) = (true, true);
                    break;
                }
                bytes += size.bytes();
                cut.entries.push((entry.key, cursor));
            }
            cut.next = cursor;
        }
        cut
    }
}

fn no_connection(error: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}

/// How many index entries one step looks at.
fn scan_rows(bounds: PageBounds) -> u32 {
    let scan = bounds.blobs_max.saturating_add(1);
    scan.clamp(SCAN_ROWS.0, SCAN_ROWS.1)
}

/// Rows of a page.
#[derive(Default)]
pub(super) struct Rows {
    /// In order.
    pub(super) read: Vec<Row>,
    /// Rows that are there, and that could not be read or do not match their checksum; in order.
    pub(super) doubtful: Vec<OrderKey>,
}

/// A row that matches its checksum, and whether it belongs to the mailbox that was asked for.
pub(super) struct Row {
    pub(super) blob: StoredBlob,
    pub(super) is_ours: bool,
}

impl Readers {
    pub(super) fn new(path: &Path, files: Arc<Files>, tail: Arc<Tail>) -> Self {
        let of_hook = Arc::clone(&files);
        // Neither a lifetime nor an idle time: the pool then needs no task of its own.
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .acquire_timeout(READER_WAIT_MAX)
            // A path that leads to another database by now must not be read from.
            .after_connect(move |_, _| {
                let files = Arc::clone(&of_hook);
                Box::pin(async move { files.look_beside().await.map_err(no_connection) })
            })
            .connect_lazy_with(reader_options(path));
        Self {
            path: path.to_owned(),
            pool,
            files,
            tail,
        }
    }

    /// Whether the paths lead to what is open.
    pub(super) async fn look(&self) -> Result<(), String> {
        self.files.look_beside().await
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Opens all of them: later there may be no thread or no file descriptor for one.
    pub(super) async fn open(&self) -> sqlx::Result<()> {
        let mut all = Vec::new();
        for _ in 0..READERS {
            all.push(self.pool.acquire().await?);
        }
        Ok(())
    }

    /// Reads the newest row with its body, as a delivery does. Whether a damaged one is lost, others decide.
    pub(super) async fn probe(&self) -> sqlx::Result<()> {
        let newest = sqlx::query("SELECT sealed, body FROM blob ORDER BY seq DESC LIMIT 1");
        match newest.fetch_optional(&self.pool).await {
            Err(error) if !is_damage(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// From the index alone: which rows behind `after` fit within `bounds`. `is_first` says that
    /// one is taken however large it is.
    pub(super) async fn cut(
        &self,
        mailbox64: i64,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        is_first: bool,
        now: Timestamp,
    ) -> sqlx::Result<Cut> {
        let of = (mailbox64, after);
        let entries = entries_of(&self.pool, &self.tail, of, scan_rows(bounds)).await?;
        let reached = entries.into_iter().map(|entry| Reached {
            cursor: OrderKey(entry.key),
            entry,
        });
        let when = (is_first, now);
        Ok(Cut::of(reached.collect(), after, view, bounds, when))
    }

    /// The same for what waits for a device, by version.
    pub(super) async fn cut_backlog(
        &self,
        mailbox64: i64,
        after: BacklogCursor,
        bounds: PageBounds,
        is_first: bool,
        now: Timestamp,
    ) -> sqlx::Result<Cut<BacklogCursor>> {
        let rows = sqlx::query(
            "SELECT seq, id64, size, expires_slot, version FROM blob INDEXED BY blob_by_version \
             WHERE mailbox64 = ? AND version IS NOT NULL AND (version, seq) > (?, ?) \
             AND seq <= ? ORDER BY version, seq LIMIT ?",
        )
        .bind(mailbox64)
        .bind(sql_version(after.version))
        .bind(after.key.0)
        .bind(after.up_to.0)
        .bind(i64::from(scan_rows(bounds)))
        .fetch_all(&self.pool)
        .await?;
        let entries = rows.iter().map(|row| {
            let entry = entry(row)?;
            let version = version_of(row.try_get(4)?);
            let cursor = after.at(version, OrderKey(entry.key));
            Ok(Reached { cursor, entry })
        });
        let entries = entries.collect::<sqlx::Result<Vec<_>>>()?;
        let when = (is_first, now);
        Ok(Cut::of(entries, after, View::DeviceSync, bounds, when))
    }

    /// The last key of a mailbox.
    pub(super) async fn last_key(&self, mailbox64: i64) -> sqlx::Result<OrderKey> {
        let key = last_key(&self.pool, &self.tail, mailbox64).await?;
        Ok(OrderKey(key))
    }

    /// Reads these rows, in order, each checked against its checksum. What is gone is left out. A row
    /// on a damaged page does not keep its neighbours from being read.
    pub(super) async fn rows(
        &self,
        mailbox: &MailboxHash,
        keys: &[i64],
        secret: &Secret,
    ) -> sqlx::Result<Rows> {
        let mut connection = self.pool.acquire().await?;
        let mut rows = Rows::default();
        match read_rows(&mut connection, mailbox, keys, secret, &mut rows).await {
            Err(error) if is_damage(&error) => {
                rows = Rows::default();
                for key in keys {
                    match read_rows(&mut connection, mailbox, &[*key], secret, &mut rows).await {
                        Err(error) if is_damage(&error) => rows.doubtful.push(OrderKey(*key)),
                        read => read?,
                    }
                }
            }
            read => read?,
        }
        if !rows.doubtful.is_empty() {
            // It keeps the page as it read it, and would find the row bad long after it is whole again.
            connection.close_on_drop();
        }
        rows.read.sort_unstable_by_key(|row| row.blob.key);
        rows.doubtful.sort_unstable();
        Ok(rows)
    }

    /// Looks at these rows on a connection that has read nothing before.
    pub(super) async fn look_afresh(
        &self,
        keys: &[OrderKey],
        secret: &Secret,
    ) -> sqlx::Result<Vec<(OrderKey, Look)>> {
        let mut connection = reader_options(&self.path).connect().await?;
        let looks = look_at(&mut connection, keys, secret).await;
        connection.close().await?;
        looks
    }

    /// Compares the rows behind `after` with their checksums and their entries.
    pub(super) async fn check_slice(
        &self,
        after: OrderKey,
        secret: &Secret,
    ) -> sqlx::Result<Slice> {
        let mut connection = self.pool.acquire().await?;
        check_slice(&mut connection, after, secret).await
    }

    /// Those of these rows that stand wrongly, on a connection that has read nothing before.
    pub(super) async fn misplaced_afresh(
        &self,
        keys: &[OrderKey],
        secret: &Secret,
    ) -> sqlx::Result<Vec<Misplaced>> {
        let mut connection = reader_options(&self.path).connect().await?;
        let misplaced = misplaced_of(&mut connection, keys, secret).await;
        connection.close().await?;
        misplaced
    }

    /// The keys of a mailbox between two keys, the second one included, that `view` sees.
    pub(super) async fn keys_of(
        &self,
        mailbox64: i64,
        view: View,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> sqlx::Result<Vec<OrderKey>> {
        let mut keys = Vec::new();
        let mut after = after;
        loop {
            let entries = entries_of(&self.pool, &self.tail, (mailbox64, after), KEYS_SCAN).await?;
            let is_last = entries.len() < KEYS_SCAN as usize;
            for entry in entries {
                after = OrderKey(entry.key);
                if after > up_to || keys.len() >= limit as usize {
                    return Ok(keys);
                }
                keys.extend(view.shows(entry.size.class()).then_some(after));
            }
            if is_last {
                return Ok(keys);
            }
        }
    }

    /// What these mailboxes hold, those that hold something, by their prefixes.
    pub(super) async fn holdings(
        &self,
        mailboxes: &[i64],
        view: View,
        now: Timestamp,
    ) -> sqlx::Result<HashMap<i64, Holding>> {
        let seen = self.tail.entries_of(mailboxes);
        let (slot, classes) = (expiry_slot(now), shown_classes(view));
        let mut sums = HashMap::<i64, Sum>::default();
        let mut left = mailboxes;
        while let Some((query, later)) =
            SELECT_HOLDINGS.cut_keys_after(&[slot, seen.settled_to, classes], left)
        {
            for row in query.fetch_all(&self.pool).await? {
                let sum = sums.entry(row.try_get(0)?).or_default();
                sum.blobs += to_u64(row.try_get(1)?);
                sum.bytes += to_u64(row.try_get(2)?);
                sum.pending += to_u64(row.try_get(3)?);
            }
            left = later;
        }
        for (mailbox64, entry) in seen.unsettled {
            if view.shows(entry.size.class()) {
                let sum = sums.entry(mailbox64).or_default();
                sum.blobs += 1;
                sum.bytes += entry.size.bytes();
                sum.pending += u64::from(entry.slot >= slot);
            }
        }
        let holdings = sums.into_iter();
        Ok(holdings
            .map(|(mailbox64, sum)| (mailbox64, sum.holding()))
            .collect())
    }

    /// The keys of an owner's messages between two keys, the second one included.
    pub(super) async fn keys_of_owner(
        &self,
        owner64: i64,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> sqlx::Result<Vec<OrderKey>> {
        let rows = sqlx::query(
            "SELECT seq FROM blob INDEXED BY blob_by_owner \
             WHERE owner64 = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        )
        .bind(owner64)
        .bind(after.0)
        .bind(up_to.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        keys(&rows)
    }

    /// What is known about these recovery keys.
    pub(super) async fn proofs(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> sqlx::Result<RecoveryPage> {
        read_proofs(&self.pool, key_hashes, bytes_max, now).await
    }

    /// The pins of some mailboxes, those that there are.
    pub(super) async fn pins(
        &self,
        mailboxes: &[MailboxHash],
    ) -> sqlx::Result<HashMap<MailboxHash, Pin>> {
        let mut connection = self.pool.acquire().await?;
        read_pins(&mut connection, mailboxes).await
    }

    /// The largest order key that was ever given out.
    pub(super) async fn horizon(&self) -> sqlx::Result<OrderKey> {
        let row = sqlx::query("SELECT high_water FROM usage WHERE one = 1")
            .fetch_one(&self.pool)
            .await?;
        row.try_get(0).map(OrderKey)
    }

    /// Rows of slots before this one, all of them expired, the oldest slot first, without those that have left
    /// and are in the table still.
    pub(super) async fn expired_before(
        &self,
        slot: i64,
        limit: usize,
    ) -> sqlx::Result<Vec<OrderKey>> {
        let (mut present, mut behind) = (Vec::new(), (i64::MIN, i64::MIN));
        loop {
            let rows = sqlx::query(
                "SELECT seq, expires_slot FROM blob INDEXED BY blob_by_expiry \
                 WHERE expires_slot < ? AND (expires_slot, seq) > (?, ?) \
                 ORDER BY expires_slot, seq LIMIT ?",
            )
            .bind(slot)
            .bind(behind.0)
            .bind(behind.1)
            .bind(EXPIRED_ROWS)
            .fetch_all(&self.pool)
            .await?;
            let mut found = keys(&rows)?;
            self.retain_present(&mut found);
            present.append(&mut found);
            match rows.last() {
                Some(last) if present.len() < limit && rows.len() >= EXPIRED_ROWS as usize => {
                    behind = (last.try_get(1)?, last.try_get(0)?);
                }
                _ => break,
            }
        }
        present.truncate(limit);
        Ok(present)
    }

    /// Whether a row has left and is in the table still.
    pub(super) fn is_gone(&self, key: OrderKey) -> bool {
        self.tail.is_gone(key.0)
    }

    /// Leaves out what has left and is in the table still.
    pub(super) fn retain_present(&self, keys: &mut Vec<OrderKey>) {
        self.tail.retain_present(keys);
    }

    /// The expiry of a row of the first slot.
    pub(super) async fn next_expiry(&self) -> sqlx::Result<Option<Timestamp>> {
        let row = sqlx::query(
            "SELECT expires_at FROM blob INDEXED BY blob_by_expiry \
             ORDER BY expires_slot LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| timestamp(&row, 0)).transpose()
    }

    /// Rows of one slot behind a key.
    pub(super) async fn of_slot(
        &self,
        slot: i64,
        after: OrderKey,
        limit: u32,
    ) -> sqlx::Result<Vec<RowOfSlot>> {
        let rows = sqlx::query(
            "SELECT seq, expires_at, kind FROM blob INDEXED BY blob_by_expiry \
             WHERE expires_slot = ? AND seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(slot)
        .bind(after.0)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        let of_slot = |row: &SqliteRow| {
            Ok(RowOfSlot {
                key: OrderKey(row.try_get(0)?),
                expires_at: timestamp(row, 1)?,
                is_asking: Kind(row.try_get(2)?).wants_receipts(),
            })
        };
        rows.iter().map(of_slot).collect()
    }
}

/// What a mailbox holds, so far.
#[derive(Debug, Default)]
struct Sum {
    blobs: u64,
    bytes: u64,
    pending: u64,
}

impl Sum {
    fn holding(&self) -> Holding {
        let pending = u32::try_from(self.pending).unwrap_or(u32::MAX);
        Holding {
            pending: pending.min(Holding::PENDING_MAX),
            blobs: self.blobs,
            bytes: self.bytes + self.blobs * ROW_OVERHEAD_BYTES,
        }
    }
}

/// What the sweep must know of a row.
pub(super) struct RowOfSlot {
    pub(super) key: OrderKey,
    pub(super) expires_at: Timestamp,
    /// Whether its sender asked for receipts.
    pub(super) is_asking: bool,
}

/// One bit for each class that is shown.
fn shown_classes(view: View) -> i64 {
    let shown = Class::ALL.into_iter().filter(|class| view.shows(*class));
    shown.map(|class| 1 << class as u8).sum()
}

fn keys(rows: &[SqliteRow]) -> sqlx::Result<Vec<OrderKey>> {
    rows.iter()
        .map(|row| row.try_get(0).map(OrderKey))
        .collect()
}

/// Reads rows as far as that succeeds.
async fn read_rows(
    connection: &mut SqliteConnection,
    mailbox: &MailboxHash,
    mut keys: &[i64],
    secret: &Secret,
    rows: &mut Rows,
) -> sqlx::Result<()> {
    while let Some((query, later)) = SELECT_ROWS.cut_keys(keys) {
        for row in query.fetch_all(&mut *connection).await? {
            match sound(&row, secret)? {
                Some((blob, of)) => rows.read.push(Row {
                    blob,
                    is_ours: of == *mailbox,
                }),
                None => rows.doubtful.push(OrderKey(row.try_get(0)?)),
            }
        }
        keys = later;
    }
    Ok(())
}

/// Looks at these rows, one by one.
pub(super) async fn look_at(
    connection: &mut SqliteConnection,
    keys: &[OrderKey],
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Look)>> {
    let mut looks = Vec::with_capacity(keys.len());
    for key in keys {
        let Some((query, _)) = SELECT_ROWS.cut_keys(&[key.0]) else {
            continue;
        };
        let read = query.fetch_optional(&mut *connection).await;
        let look = read.and_then(|row| match row {
            None => Ok(Look::Gone),
            Some(row) => Ok(Look::of(sound(&row, secret)?)),
        });
        match look {
            Ok(look) => looks.push((*key, look)),
            Err(error) if is_damage(&error) => looks.push((*key, Look::Bad)),
            Err(error) => return Err(error),
        }
    }
    Ok(looks)
}
