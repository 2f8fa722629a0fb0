//! Answers what a fold asks: one statement for each kind of question, in the transaction that the plan is
//! written in.
//!
//! Nothing is remembered from one batch to the next: other instances write, too. Within a transaction it is
//! remembered what was answered, so that the writer sees what another instance has changed meanwhile.

use std::sync::LazyLock;

use foldhash::{HashMap, HashMapExt as _, HashSet};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::columns::{charged, class_of, count, expiry_slot, millis, slot_start, to_i64};
use super::guard::HEADER_COLUMNS;
use super::rows;
use super::usage::{SUMS, Sums};
use super::{departed, nonces, pins, recovery};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::engine::{
    Account, Asked, Header, Held, Holder, Known, KnownNonces, Name, RELIEF_ROWS_MAX,
};
use crate::store::model::OrderKey;
use crate::store::sql::quarantine::Look;

static BEGUN: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT (SELECT number FROM meta WHERE name = 'base') \
         + pg_current_xact_id()::text::bigint * 65536 AS next_key, \
         pg_snapshot_xmin(pg_current_snapshot()) = pg_current_xact_id() AS is_oldest, {SUMS} FROM usage"
    )
});

/// What a transaction that is open has found.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// The first of its keys.
    pub(super) first_key: i64,
    /// Whether all transactions with smaller numbers had ended when it began: what they wrote is seen, so the
    /// last key of a mailbox that is seen is the last one before its own.
    is_oldest: bool,
    pub(super) sums: Sums,
    /// Names that are remembered as departed.
    pub(super) departed: HashSet<Name>,
    /// Nonces that are remembered as burnt.
    pub(super) burnt: HashMap<[u8; 32], Timestamp>,
    /// Mailboxes that have a pin.
    pub(super) pinned: HashSet<MailboxHash>,
}

impl Begun {
    /// What holds in the transaction that this connection has just begun.
    pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Self> {
        let row = sqlx::query(BEGUN.as_str()).fetch_one(connection).await?;
        Ok(Self {
            first_key: row.try_get("next_key")?,
            is_oldest: row.try_get("is_oldest")?,
            sums: Sums::read(&row)?,
            ..Self::default()
        })
    }

    /// Answers, and remembers what was answered.
    pub(super) async fn answer(
        &mut self,
        connection: &mut PgConnection,
        asked: &Asked,
        secret: &Secret,
    ) -> sqlx::Result<Known> {
        let mut known = Known {
            next_key: self.first_key,
            held: self.sums.held,
            // The server tells when its disk is full, and not before.
            has_room: true,
            ..Known::default()
        };
        // What leaves is locked before anything is counted.
        let found = rows::by_name(connection, &asked.names, secret).await?;
        known.rows.extend(found);
        let found = rows::by_topic(connection, &asked.topics, secret).await?;
        known.rows.extend(found);
        let found = rows::by_key(connection, &asked.keys, secret).await?;
        known.rows.extend(found);
        if !asked.doubtful.is_empty() {
            let looks = rows::look_at(connection, &asked.doubtful, (secret, true)).await?;
            let sound = looks.iter().filter(|(_, look)| **look != Look::Bad);
            known.sound.extend(sound.map(|(key, _)| *key));
        }
        for (holder, by) in &asked.expired {
            let expired = expired_of(connection, *holder, *by, secret).await?;
            let keys = expired.iter().map(|(key, _)| *key).collect();
            known.expired.insert(*holder, keys);
            known.rows.extend(expired);
        }
        known.departed = departed::find(connection, &asked.departed).await?;
        self.departed.extend(known.departed.keys());
        read_accounts(connection, &asked.holders, &mut known.accounts).await?;
        if !self.is_oldest {
            // Something may still come in between. No session stands there, so each reads a page instead.
            let accounts = known.accounts.values_mut();
            accounts.for_each(|account| account.last_key = OrderKey(i64::MAX));
        }
        known.proofs = recovery::known(connection, asked).await?;
        known.pins = pins::known(connection, asked).await?;
        self.pinned.extend(known.pins.pins.keys());
        self.pinned.extend(&known.pins.to_go);
        known.nonces = KnownNonces {
            burnt: nonces::find(connection, &asked.nonces).await?,
            count: self.sums.nonces,
        };
        self.burnt.extend(&known.nonces.burnt);
        Ok(known)
    }
}

/// What mailboxes and owners have, from their index alone.
async fn read_accounts(
    connection: &mut PgConnection,
    holders: &[Holder],
    accounts: &mut HashMap<Holder, Account>,
) -> sqlx::Result<()> {
    let (mut mailboxes, mut owners) = (Vec::new(), Vec::new());
    for holder in holders {
        match holder {
            Holder::Mailbox(mailbox) => mailboxes.push(mailbox.prefix64()),
            Holder::Owner(owner) => owners.push(owner.prefix64()),
        }
    }
    let of_mailboxes = read_sums(connection, ACCOUNTS_OF_MAILBOXES, mailboxes).await?;
    let of_owners = read_sums(connection, ACCOUNTS_OF_OWNERS, owners).await?;
    for holder in holders {
        let account = match holder {
            Holder::Mailbox(mailbox) => of_mailboxes.get(&mailbox.prefix64()),
            Holder::Owner(owner) => of_owners.get(&owner.prefix64()),
        };
        accounts.insert(*holder, account.copied().unwrap_or_default());
    }
    Ok(())
}

const ACCOUNTS_OF_MAILBOXES: &str = "SELECT b.mailbox64 AS holder64, b.size & 3 AS class, \
     count(*) AS blobs, sum(b.size >> 2)::bigint AS bytes, max(b.pos) AS last, \
     min(b.expires_slot) AS slot \
     FROM unnest($1::bigint[]) AS asked (mailbox64) JOIN blob b ON b.mailbox64 = asked.mailbox64 \
     GROUP BY 1, 2";

const ACCOUNTS_OF_OWNERS: &str = "SELECT b.owner64 AS holder64, b.size & 3 AS class, \
     count(*) AS blobs, sum(b.size >> 2)::bigint AS bytes, max(b.pos) AS last, \
     min(b.expires_slot) AS slot \
     FROM unnest($1::bigint[]) AS asked (owner64) JOIN blob b ON b.owner64 = asked.owner64 \
     AND b.owner64 IS NOT NULL GROUP BY 1, 2";

async fn read_sums(
    connection: &mut PgConnection,
    statement: &'static str,
    holders: Vec<i64>,
) -> sqlx::Result<HashMap<i64, Account>> {
    let mut accounts: HashMap<i64, Account> = HashMap::new();
    if holders.is_empty() {
        return Ok(accounts);
    }
    let rows = sqlx::query(statement)
        .bind(holders)
        .fetch_all(connection)
        .await?;
    for row in &rows {
        let account = accounts.entry(row.try_get("holder64")?).or_default();
        let (blobs, bytes) = (count(row, "blobs")?, count(row, "bytes")?);
        let class = class_of(row.try_get("class")?);
        account.held[class as usize] = Held {
            blobs,
            bytes: charged(blobs, bytes),
        };
        let earliest = slot_start(row.try_get("slot")?);
        account.earliest_expiry = account.earliest_expiry.min(earliest);
        account.last_key = account.last_key.max(OrderKey(row.try_get("last")?));
    }
    Ok(accounts)
}

/// The slot stands in a sum, so that the rows are found by their holder and not by their slot.
static EXPIRED_OF_MAILBOX: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {HEADER_COLUMNS} FROM blob b WHERE b.mailbox64 = $1 AND b.expires_slot + 0 <= $2 \
         AND b.expires_at <= $3 ORDER BY b.pos LIMIT $4 FOR NO KEY UPDATE"
    )
});

static EXPIRED_OF_OWNER: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {HEADER_COLUMNS} FROM blob b WHERE b.owner64 = $1 AND b.expires_slot + 0 <= $2 \
         AND b.expires_at <= $3 ORDER BY b.pos LIMIT $4 FOR NO KEY UPDATE"
    )
});

async fn expired_of(
    connection: &mut PgConnection,
    holder: Holder,
    by: Timestamp,
    secret: &Secret,
) -> sqlx::Result<Vec<(OrderKey, Header)>> {
    let (statement, holder64) = match holder {
        Holder::Mailbox(mailbox) => (&EXPIRED_OF_MAILBOX, mailbox.prefix64()),
        Holder::Owner(owner) => (&EXPIRED_OF_OWNER, owner.prefix64()),
    };
    let rows = sqlx::query(statement.as_str())
        .bind(holder64)
        .bind(expiry_slot(by))
        .bind(millis(by))
        .bind(to_i64(RELIEF_ROWS_MAX as u64))
        .fetch_all(connection)
        .await?;
    rows::headers(&rows, secret)
}
