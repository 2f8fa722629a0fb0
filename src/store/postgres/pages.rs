//! The SQL of pages, and of what is due to be removed.
//!
//! A page is one statement: it lists what comes next in the mailbox, and joins the bodies of what fits. It
//! ends before the first position at which something smaller can still appear (`keys`).

use std::sync::LazyLock;

use foldhash::HashMap;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::columns::{
    charged, count, expiry_slot, millis, slot_start, sql_version, to_i64, version_of,
};
use super::guard::{HEADER_COLUMNS, key, sound};
use super::keys::EDGE;
use super::rows::numbers;
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::engine::{ExpiryCursor, KeysOf};
use crate::store::model::{BacklogCursor, Class, Holding, More, OrderKey, Page, PageBounds, View};

/// Rows that one page looks at: as many as are asked for, within these.
const SCAN_ROWS: (u32, u32) = (128, 1_024);

/// A page of `entries`, which come in `order`. The bodies are joined by a key that is NULL for what does not
/// fit, so that nothing is read for it.
fn page_of(entries: &str, order: &str) -> String {
    format!(
        "WITH edge AS MATERIALIZED (SELECT {EDGE} AS pos), \
         entries AS MATERIALIZED (SELECT b.pos, b.version, b.size, b.pos >= edge.pos AS is_hidden, \
             ((1 << (b.size & 3)) & $3::integer) <> 0 AND b.expires_at > $4 AND b.pos <> ALL ($5::bigint[]) \
             AS is_shown FROM blob b, edge WHERE {entries} ORDER BY {order} LIMIT $6), \
         sized AS (SELECT *, count(*) FILTER (WHERE is_shown) OVER so_far AS nth, \
             coalesce(sum(size >> 2) FILTER (WHERE is_shown) OVER so_far, 0) AS bytes \
             FROM entries WINDOW so_far AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)), \
         cut AS (SELECT *, is_shown AND NOT is_hidden AND nth <= greatest($7::bigint, 1) \
             AND (bytes <= $8::bigint OR nth = 1) AS fits FROM sized) \
         SELECT cut.pos AS at_pos, cut.version AS at_version, cut.is_hidden, cut.is_shown, cut.fits, \
             {HEADER_COLUMNS}, b.body \
         FROM cut LEFT JOIN blob b ON b.pos = CASE WHEN cut.fits THEN cut.pos END \
         ORDER BY {}",
        order
            .split(", ")
            .map(|column| format!("cut.{column}"))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

static PAGE: LazyLock<String> = LazyLock::new(|| page_of("b.mailbox64 = $1 AND b.pos > $2", "pos"));

static BACKLOG: LazyLock<String> = LazyLock::new(|| {
    page_of(
        "b.mailbox64 = $1 AND b.version IS NOT NULL AND (b.version, b.pos) > ($9, $2) AND b.pos <= $10",
        "version, pos",
    )
});

/// A page, and rows in it that are not what was written.
pub(super) struct Read<C> {
    pub(super) page: Page<C>,
    pub(super) doubtful: Vec<OrderKey>,
}

impl<C> Read<C> {
    /// The same page for readers who stand elsewhere.
    pub(super) fn at<D>(self, cursor: impl Fn(C) -> D) -> Read<D> {
        Read {
            page: Page {
                blobs: self.page.blobs,
                next: cursor(self.page.next),
                more: self.page.more,
            },
            doubtful: self.doubtful,
        }
    }
}

/// What a page is read for.
pub(super) struct Wanted<'a> {
    pub(super) mailbox: MailboxHash,
    pub(super) view: View,
    pub(super) bounds: PageBounds,
    pub(super) now: Timestamp,
    /// Rows that are passed over.
    pub(super) quarantined: &'a [OrderKey],
    pub(super) secret: &'a Secret,
}

impl Wanted<'_> {
    /// How many rows the page looks at.
    fn scan_rows(&self) -> u32 {
        let scan = self.bounds.blobs_max.saturating_add(1);
        scan.clamp(SCAN_ROWS.0, SCAN_ROWS.1)
    }
}

/// The next blobs after `after`.
pub(super) async fn page(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    after: OrderKey,
) -> sqlx::Result<Read<OrderKey>> {
    let rows = bind(PAGE.as_str(), wanted, after)
        .fetch_all(connection)
        .await?;
    read(&rows, wanted, after, |_, key| Ok(key))
}

/// The next device sync messages of a backlog.
pub(super) async fn backlog(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    after: BacklogCursor,
) -> sqlx::Result<Read<BacklogCursor>> {
    let rows = bind(BACKLOG.as_str(), wanted, after.key)
        .bind(sql_version(after.version))
        .bind(after.up_to.0)
        .fetch_all(connection)
        .await?;
    read(&rows, wanted, after, |row, key| {
        let version = version_of(row.try_get("at_version")?);
        Ok(after.at(version, key))
    })
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind(statement: &'static str, wanted: &Wanted<'_>, after: OrderKey) -> Query<'static> {
    sqlx::query(statement)
        .bind(wanted.mailbox.prefix64())
        .bind(after.0)
        .bind(shown_classes(wanted.view))
        .bind(millis(wanted.now))
        .bind(numbers(wanted.quarantined.iter().copied()))
        .bind(i64::from(wanted.scan_rows()))
        .bind(i64::from(wanted.bounds.blobs_max))
        .bind(to_i64(wanted.bounds.bytes_max))
}

/// One bit for each class that is shown.
fn shown_classes(view: View) -> i32 {
    let shown = Class::ALL.into_iter().filter(|class| view.shows(*class));
    shown.map(|class| 1 << class as u8).sum()
}

fn read<C: Copy>(
    rows: &[PgRow],
    wanted: &Wanted<'_>,
    after: C,
    cursor: impl Fn(&PgRow, OrderKey) -> sqlx::Result<C>,
) -> sqlx::Result<Read<C>> {
    let is_cut = rows.len() >= wanted.scan_rows() as usize;
    let mut page = Page {
        blobs: Vec::new(),
        next: after,
        more: if is_cut { More::Yes } else { More::No },
    };
    let mut doubtful = Vec::new();
    for row in rows {
        if row.try_get("is_hidden")? {
            // What can be shown is; behind it the reader comes again, and waits.
            page.more = match page.blobs.is_empty() {
                true => More::Soon,
                false => More::Yes,
            };
            break;
        }
        let key = OrderKey(row.try_get("at_pos")?);
        if row.try_get("is_shown")? {
            if !row.try_get::<bool, _>("fits")? {
                page.more = More::Yes;
                break;
            }
            match sound(row, wanted.secret)? {
                Some((blob, of)) if of == wanted.mailbox => page.blobs.push(blob),
                // The first 64 bits of two mailboxes are the same.
                Some(_) => {}
                None => doubtful.push(key),
            }
        }
        page.next = cursor(row, key)?;
    }
    Ok(Read { page, doubtful })
}

/// The keys that a page would look at: for when it cannot be read as a whole.
pub(super) async fn keys_ahead(
    connection: &mut PgConnection,
    mailbox: &MailboxHash,
    after: OrderKey,
) -> sqlx::Result<Vec<OrderKey>> {
    let rows =
        sqlx::query("SELECT pos FROM blob WHERE mailbox64 = $1 AND pos > $2 ORDER BY pos LIMIT $3")
            .bind(mailbox.prefix64())
            .bind(after.0)
            .bind(i64::from(SCAN_ROWS.1))
            .fetch_all(connection)
            .await?;
    rows.iter().map(key).collect()
}

static LAST_KEY: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT coalesce(max(pos), 0) AS pos FROM blob WHERE mailbox64 = $1 AND pos < ({EDGE})")
});

/// The last key of a mailbox that a reader may pass.
pub(super) async fn last_key(
    connection: &mut PgConnection,
    mailbox: &MailboxHash,
) -> sqlx::Result<OrderKey> {
    let row = sqlx::query(LAST_KEY.as_str())
        .bind(mailbox.prefix64())
        .fetch_one(connection)
        .await?;
    key(&row)
}

/// What these mailboxes hold of what `view` shows, those that hold something, by their prefixes.
pub(super) async fn holdings(
    connection: &mut PgConnection,
    mailboxes: &[MailboxHash],
    view: View,
    now: Timestamp,
) -> sqlx::Result<HashMap<i64, Holding>> {
    let prefixes: Vec<_> = mailboxes.iter().map(MailboxHash::prefix64).collect();
    let rows = sqlx::query(
        "SELECT b.mailbox64, count(*) AS blobs, sum(b.size >> 2)::bigint AS bytes, \
         least(count(*) FILTER (WHERE b.expires_at > $3), $4) AS pending \
         FROM unnest($1::bigint[]) AS asked (mailbox64) JOIN blob b ON b.mailbox64 = asked.mailbox64 \
         WHERE (1 << (b.size & 3)) & $2::integer <> 0 GROUP BY 1",
    )
    .bind(prefixes)
    .bind(shown_classes(view))
    .bind(millis(now))
    .bind(i64::from(Holding::PENDING_MAX))
    .fetch_all(connection)
    .await?;
    let holding = |row: &PgRow| {
        let (blobs, bytes) = (count(row, "blobs")?, count(row, "bytes")?);
        let holding = Holding {
            pending: u32::try_from(count(row, "pending")?).unwrap_or(u32::MAX),
            blobs,
            bytes: charged(blobs, bytes),
        };
        Ok((row.try_get("mailbox64")?, holding))
    };
    rows.iter().map(holding).collect()
}

/// The keys of a mailbox, or of an owner, between two keys, the second one included.
pub(super) async fn keys_of(
    connection: &mut PgConnection,
    of: KeysOf,
    (after, up_to): (OrderKey, OrderKey),
    limit: u32,
) -> sqlx::Result<Vec<OrderKey>> {
    let (statement, holder64, classes) = match of {
        KeysOf::Mailbox(mailbox, view) => (
            "SELECT pos FROM blob WHERE mailbox64 = $1 AND pos > $2 AND pos <= $3 \
             AND (1 << (size & 3)) & $5::integer <> 0 ORDER BY pos LIMIT $4",
            mailbox.prefix64(),
            shown_classes(view),
        ),
        KeysOf::Owner(owner) => (
            "SELECT pos FROM blob WHERE owner64 = $1 AND pos > $2 AND pos <= $3 \
             AND (1 << (size & 3)) & $5::integer <> 0 ORDER BY pos LIMIT $4",
            owner.prefix64(),
            shown_classes(View::DeviceSync),
        ),
    };
    let rows = sqlx::query(statement)
        .bind(holder64)
        .bind(after.0)
        .bind(up_to.0)
        .bind(i64::from(limit))
        .bind(classes)
        .fetch_all(connection)
        .await?;
    rows.iter().map(key).collect()
}

/// Rows of the current slot that one call looks at. They lie about in the order in which they came, and so in
/// that in which they expire; what is missed goes when the slot is over, ten minutes later at the most.
const SLOT_SCAN: i64 = 4_096;

/// Rows that had expired by then, those of the slots that are over first.
pub(super) async fn expired(
    connection: &mut PgConnection,
    limit: u32,
    expired_by: Timestamp,
) -> sqlx::Result<Vec<OrderKey>> {
    let (slot, limit) = (expiry_slot(expired_by), i64::from(limit));
    let rows =
        sqlx::query("SELECT pos FROM blob WHERE expires_slot < $1 ORDER BY expires_slot LIMIT $2")
            .bind(slot)
            .bind(limit)
            .fetch_all(&mut *connection)
            .await?;
    let mut keys = rows.iter().map(key).collect::<sqlx::Result<Vec<_>>>()?;
    let left = limit - keys.len() as i64;
    if left > 0 {
        let rows = sqlx::query(
            "SELECT pos FROM (SELECT pos, expires_at FROM blob WHERE expires_slot = $1 LIMIT $2) AS slot \
             WHERE expires_at <= $3 LIMIT $4",
        )
        .bind(slot)
        .bind(SLOT_SCAN)
        .bind(millis(expired_by))
        .bind(left)
        .fetch_all(connection)
        .await?;
        let found = rows.iter().map(key);
        keys.extend(found.collect::<sqlx::Result<Vec<_>>>()?);
    }
    Ok(keys)
}

/// Rows that asked for receipts, from a moment on, by slot and then by key: which of them had expired by
/// then, and where to go on.
pub(super) async fn expired_asking(
    connection: &mut PgConnection,
    from: ExpiryCursor,
    limit: u32,
    expired_by: Timestamp,
) -> sqlx::Result<(Vec<OrderKey>, Option<ExpiryCursor>)> {
    let rows = sqlx::query(
        "SELECT pos, expires_slot, expires_at FROM blob WHERE kind <> 0 \
         AND (expires_slot, pos) > ($1, $2) AND expires_slot <= $3 ORDER BY expires_slot, pos LIMIT $4",
    )
    .bind(expiry_slot(from.expires_at))
    .bind(from.key.0)
    .bind(expiry_slot(expired_by))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let mut keys = Vec::new();
    let mut next = None;
    for row in &rows {
        if row.try_get::<i64, _>("expires_at")? <= millis(expired_by) {
            keys.push(key(row)?);
        }
        let slot = slot_start(row.try_get("expires_slot")?);
        next = Some(ExpiryCursor::new(slot, key(row)?));
    }
    Ok((keys, next.filter(|_| rows.len() == limit as usize)))
}

/// The first slot in which something expires.
pub(super) async fn next_expiry(connection: &mut PgConnection) -> sqlx::Result<Option<Timestamp>> {
    let row = sqlx::query("SELECT expires_slot FROM blob ORDER BY expires_slot LIMIT 1")
        .fetch_optional(connection)
        .await?;
    let slot: Option<i32> = row.map(|row| row.try_get("expires_slot")).transpose()?;
    Ok(slot.map(slot_start))
}

/// Reads something of the newest row, as a delivery does.
pub(super) async fn probe(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT sealed, substr(body, 1, 1) FROM blob ORDER BY pos DESC LIMIT 1")
        .fetch_optional(connection)
        .await
        .map(drop)
}
