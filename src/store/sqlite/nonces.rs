//! The SQL of nonces, and their memory.
//!
//! All of them are in memory, as they are in the table `nonce`, which is read at the start. They are
//! forgotten in the order in which they were burnt, when their time is over.

use std::collections::VecDeque;

use foldhash::HashMap;
use futures_util::TryStreamExt as _;
use rusqlite::{Connection, params};
use sqlx::sqlite::SqliteConnection;

use super::columns::{fixed, timestamp, to_i64};
use super::rows::Sql;
use crate::clock::Timestamp;
use crate::store::engine::{KnownNonces, NoncePlan, is_nonce_over};

/// Nonces that one transaction deletes beside what it is for.
const TRIM_MAX: usize = 1_000;

const INSERT_NONCE: &str = "INSERT OR REPLACE INTO nonce (nonce, burnt_at) VALUES (?, ?)";

const DELETE_NONCE: &str = "DELETE FROM nonce WHERE nonce = ?";

/// The nonces that are remembered.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    burnt: HashMap<[u8; 32], Timestamp>,
    /// In the order in which they are forgotten.
    order: VecDeque<(Timestamp, [u8; 32])>,
}

impl Nonces {
    /// Reads the table.
    pub(super) async fn read(connection: &mut SqliteConnection) -> sqlx::Result<Self> {
        let mut nonces = Self::default();
        let mut table =
            sqlx::query("SELECT nonce, burnt_at FROM nonce ORDER BY burnt_at").fetch(connection);
        while let Some(row) = table.try_next().await? {
            nonces.remember(fixed(&row, 0)?, timestamp(&row, 1)?);
        }
        Ok(nonces)
    }

    fn remember(&mut self, nonce: [u8; 32], burnt_at: Timestamp) {
        self.burnt.insert(nonce, burnt_at);
        self.order.push_back((burnt_at, nonce));
    }

    /// Answers what a fold asks.
    pub(super) fn answer(&self, asked: &[[u8; 32]], known: &mut KnownNonces) {
        let burnt = asked
            .iter()
            .filter_map(|nonce| Some((*nonce, *self.burnt.get(nonce)?)));
        known.burnt.extend(burnt);
        known.count = self.burnt.len() as u64;
    }

    /// How many of the oldest were over by then, within a bound, and which rows go with them: one that
    /// was burnt again since stays.
    pub(super) fn over(&self, forget_by: Timestamp) -> Over {
        let over = self.order.iter().take(TRIM_MAX);
        let over = over.take_while(|(burnt_at, _)| is_nonce_over(*burnt_at, forget_by));
        let mut found = Over::default();
        for (burnt_at, nonce) in over {
            found.count += 1;
            if self.burnt.get(nonce) == Some(burnt_at) {
                found.nonces.push(*nonce);
            }
        }
        found
    }

    /// A transaction is durable that burnt these and deleted what was over.
    pub(super) fn written(&mut self, plan: &NoncePlan, over: usize) {
        for (burnt_at, nonce) in self.order.drain(..over.min(self.order.len())) {
            if self.burnt.get(&nonce) == Some(&burnt_at) {
                self.burnt.remove(&nonce);
            }
        }
        for (nonce, burnt_at) in &plan.burnt {
            self.remember(*nonce, *burnt_at);
        }
    }
}

/// Nonces that may go.
#[derive(Debug, Default)]
pub(super) struct Over {
    /// From the oldest on.
    pub(super) count: usize,
    /// Their rows.
    pub(super) nonces: Vec<[u8; 32]>,
}

/// Writes what a plan does. What is over goes first: it may be burnt again.
pub(super) fn write_nonces(
    connection: &Connection,
    plan: &NoncePlan,
    over: &[[u8; 32]],
) -> Sql<()> {
    for nonce in over {
        connection.prepare_cached(DELETE_NONCE)?.execute([nonce])?;
    }
    for (nonce, burnt_at) in &plan.burnt {
        let mut insert = connection.prepare_cached(INSERT_NONCE)?;
        insert.execute(params![nonce, to_i64(burnt_at.millis())])?;
    }
    Ok(())
}
