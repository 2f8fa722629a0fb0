//! The SQL of pins.

use std::collections::VecDeque;

use foldhash::{HashMap, HashSet};
use sqlx::postgres::{PgConnection, PgRow};

use super::columns::{hash, millis, timestamp, to_i64};
use crate::ids::MailboxHash;
use crate::store::engine::{Asked, KnownPins, Pin, PinPlan};

/// The pins of some mailboxes, those that there are, for a page.
pub(super) async fn read(
    connection: &mut PgConnection,
    mailboxes: &[MailboxHash],
) -> sqlx::Result<HashMap<MailboxHash, Pin>> {
    let rows = sqlx::query("SELECT mailbox, last_used FROM pin WHERE mailbox = ANY($1)")
        .bind(column(mailboxes.iter()))
        .fetch_all(connection)
        .await?;
    rows.iter().map(pin).collect()
}

/// What a batch asks about pins. They are locked, so that of two instances one lets each go.
pub(super) async fn known(connection: &mut PgConnection, asked: &Asked) -> sqlx::Result<KnownPins> {
    let mut known = KnownPins::default();
    if !asked.pins.is_empty() {
        let rows = sqlx::query(
            "SELECT mailbox, last_used FROM pin WHERE mailbox = ANY($1) ORDER BY mailbox FOR UPDATE",
        )
        .bind(column(asked.pins.iter()))
        .fetch_all(&mut *connection)
        .await?;
        known.pins = rows.iter().map(pin).collect::<sqlx::Result<_>>()?;
    }
    if asked.pins_to_go > 0 {
        let rows = sqlx::query(
            "SELECT mailbox FROM pin WHERE last_used <= $1 ORDER BY last_used, mailbox LIMIT $2 FOR UPDATE",
        )
        .bind(millis(asked.pins_over_by.unwrap_or_default()))
        .bind(to_i64(asked.pins_to_go))
        .fetch_all(connection)
        .await?;
        let to_go = rows.iter().map(|row| hash(row, "mailbox"));
        known.to_go = to_go.collect::<sqlx::Result<VecDeque<_>>>()?;
    }
    Ok(known)
}

fn pin(row: &PgRow) -> sqlx::Result<(MailboxHash, Pin)> {
    let pin = Pin {
        last_used: timestamp(row, "last_used")?,
    };
    Ok((hash(row, "mailbox")?, pin))
}

fn column<'a>(mailboxes: impl Iterator<Item = &'a MailboxHash>) -> Vec<&'a [u8]> {
    mailboxes
        .map(|mailbox| mailbox.as_bytes().as_slice())
        .collect()
}

/// Writes what a plan does; `before` are the mailboxes that had a pin. `false` when another instance has
/// pinned one of the others meanwhile.
pub(super) async fn write(
    connection: &mut PgConnection,
    plan: &PinPlan,
    before: &HashSet<MailboxHash>,
) -> sqlx::Result<bool> {
    let (mut new, mut used, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for (mailbox, pin) in &plan.changed {
        match (pin, before.contains(mailbox)) {
            (Some(pin), false) => new.push((mailbox, *pin)),
            (Some(pin), true) => used.push((mailbox, *pin)),
            (None, true) => gone.push(mailbox),
            // It came and went within the batch.
            (None, false) => {}
        }
    }
    let mut changed = 0;
    let statements = [
        (
            &new,
            "INSERT INTO pin (mailbox, last_used) SELECT * FROM unnest($1::bytea[], $2::bigint[]) \
             ON CONFLICT DO NOTHING",
        ),
        (
            &used,
            "UPDATE pin SET last_used = t.last_used FROM unnest($1::bytea[], $2::bigint[]) \
             AS t (mailbox, last_used) WHERE pin.mailbox = t.mailbox",
        ),
    ];
    for (pins, statement) in statements {
        if pins.is_empty() {
            continue;
        }
        let times: Vec<_> = pins.iter().map(|(_, pin)| millis(pin.last_used)).collect();
        let done = sqlx::query(statement)
            .bind(column(pins.iter().map(|(mailbox, _)| *mailbox)))
            .bind(times)
            .execute(&mut *connection)
            .await?;
        changed += done.rows_affected();
    }
    if !gone.is_empty() {
        let done = sqlx::query("DELETE FROM pin WHERE mailbox = ANY($1)")
            .bind(column(gone.iter().copied()))
            .execute(connection)
            .await?;
        changed += done.rows_affected();
    }
    Ok(changed == (new.len() + used.len() + gone.len()) as u64)
}
