//! The SQL of pins.
//!
//! Whether a mailbox is pinned is one read by primary key: some tens of microseconds, asked once
//! for each opening without a proof. A set in memory would be faster, at 30 to 50 MiB for a million
//! pins and the time to load them at each start.

use std::sync::LazyLock;

use foldhash::HashMap;
use rusqlite::{Connection, params};
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::columns::{fixed, timestamp, to_i64};
use super::rows::{Sized, Sql};
use crate::ids::MailboxHash;
use crate::store::engine::{Asked, KnownPins, Pin, PinPlan};

static SELECT_PINS: LazyLock<Sized> = LazyLock::new(|| {
    Sized::new(
        "SELECT mailbox, last_used FROM pin WHERE mailbox IN (",
        "?",
        ")",
    )
});

const WRITE_PIN: &str = "INSERT OR REPLACE INTO pin (mailbox, mailbox64, is_often, last_used) \
     VALUES (?, ?, 0, ?)";

const DELETE_PIN: &str = "DELETE FROM pin WHERE mailbox = ?";

/// Those that are over, the one least recently used first. The index begins with `is_often`, by which
/// an earlier version told pins apart; new ones have 0 there.
const SELECT_TO_GO: &str = "SELECT mailbox FROM ( \
       SELECT * FROM (SELECT mailbox, last_used FROM pin INDEXED BY pin_by_use \
         WHERE is_often = 0 AND last_used <= ?1 ORDER BY last_used, mailbox LIMIT ?2) \
       UNION ALL \
       SELECT * FROM (SELECT mailbox, last_used FROM pin INDEXED BY pin_by_use \
         WHERE is_often = 1 AND last_used <= ?1 ORDER BY last_used, mailbox LIMIT ?2) \
     ) ORDER BY last_used, mailbox LIMIT ?2";

/// The pins of some mailboxes, those that there are.
pub(super) async fn read_pins(
    connection: &mut SqliteConnection,
    mailboxes: &[MailboxHash],
) -> sqlx::Result<HashMap<MailboxHash, Pin>> {
    let mut pins = HashMap::default();
    let mut left = mailboxes;
    while let Some((mut query, now, later)) = SELECT_PINS.cut(left) {
        for mailbox in now {
            query = query.bind(mailbox.as_bytes().to_vec());
        }
        for row in query.fetch_all(&mut *connection).await? {
            let (mailbox, pin) = pin(&row)?;
            pins.insert(mailbox, pin);
        }
        left = later;
    }
    Ok(pins)
}

/// What a batch asks about pins.
pub(super) async fn read_known_pins(
    connection: &mut SqliteConnection,
    asked: &Asked,
) -> sqlx::Result<KnownPins> {
    let mut known = KnownPins {
        pins: read_pins(connection, &asked.pins).await?,
        ..KnownPins::default()
    };
    let wanted = asked.pins_to_go;
    if wanted > 0 {
        let rows = sqlx::query(SELECT_TO_GO)
            .bind(to_i64(asked.pins_over_by.unwrap_or_default().millis()))
            .bind(to_i64(wanted))
            .fetch_all(connection)
            .await?;
        for row in &rows {
            let mailbox = MailboxHash::from_bytes(fixed(row, 0)?);
            known.to_go.push_back(mailbox);
        }
    }
    Ok(known)
}

fn pin(row: &SqliteRow) -> sqlx::Result<(MailboxHash, Pin)> {
    let pin = Pin {
        last_used: timestamp(row, 1)?,
    };
    Ok((MailboxHash::from_bytes(fixed(row, 0)?), pin))
}

/// Writes what a plan does.
pub(super) fn write_pins(connection: &Connection, plan: &PinPlan) -> Sql<()> {
    for (mailbox, pin) in &plan.changed {
        let (bytes, mailbox64) = (mailbox.as_bytes(), mailbox.prefix64());
        match pin {
            Some(pin) => {
                let mut write = connection.prepare_cached(WRITE_PIN)?;
                write.execute(params![bytes, mailbox64, to_i64(pin.last_used.millis())])?;
            }
            None => {
                let mut delete = connection.prepare_cached(DELETE_PIN)?;
                delete.execute([bytes])?;
            }
        }
    }
    Ok(())
}
