//! Tells the other relays, by notifications of the server.
//!
//! They are sent after the commit and on a connection of their own. Within the transaction that stores, each
//! would hold the server's lock for notifications until the disk has the commit, and so one commit of all relays
//! would wait for the other. What gathers while one statement is under way is sent by the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashSet;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::{Connector, Role};
use super::instance::Instance;
use super::kept::Kept;
use super::payloads::{payloads, ping};
use crate::metrics::Metrics;
use crate::store::others::{Unheard, Word};

/// What all relays of a database listen to.
pub(super) const CHANNEL: &str = "vauchi_relay";

/// Words that wait to be sent, of each kind: 56 bytes each and names of 64, 8 MiB. Beyond that they are dropped
/// and counted.
const WAITING_MAX: usize = 65_536;

/// Payloads of one statement: half a megabyte.
const PAYLOADS_MAX: usize = 64;

/// How often a relay says that it is heard, if only to itself.
const PING_EVERY: Duration = Duration::from_secs(1);

/// Rest after a statement has failed.
const REST: Duration = Duration::from_secs(1);

const SEND: &str = "SELECT pg_notify('vauchi_relay', payload) FROM unnest($1::text[]) AS payload";

/// With each ping goes what is left of blobs that were handed on and of nonces that are over.
const SEND_PING: &str = "WITH passed AS (DELETE FROM live WHERE put_at < now() - interval '10 seconds'), \
     over AS (DELETE FROM recent_nonce WHERE burnt_at < now() - interval '182 seconds') \
     SELECT pg_notify('vauchi_relay', $1)";

/// Words by their kinds, each mailbox once.
#[derive(Debug, Default)]
struct Waiting {
    stored: HashSet<i64>,
    delivered: Vec<Word>,
    acknowledged: Vec<Word>,
    others: Vec<Word>,
}

impl Waiting {
    /// Whether it found room.
    fn add(&mut self, word: Word) -> bool {
        let lane = match word {
            Word::Stored(mailbox64) => {
                let has_room = self.stored.len() < WAITING_MAX;
                return self.stored.contains(&mailbox64)
                    || (has_room && self.stored.insert(mailbox64));
            }
            Word::Delivered(_) => &mut self.delivered,
            Word::Acknowledged(_) => &mut self.acknowledged,
            Word::Notice { .. } | Word::Live(..) | Word::Taken(..) => &mut self.others,
        };
        let has_room = lane.len() < WAITING_MAX;
        if has_room {
            lane.push(word);
        }
        has_room
    }

    /// All of them, kind after kind. A delivery is told before the acknowledgement of the same blob.
    fn take(&mut self) -> Vec<Word> {
        let all = std::mem::take(self);
        let stored = all.stored.into_iter().map(Word::Stored);
        let rest = [all.delivered, all.acknowledged, all.others];
        stored.chain(rest.into_iter().flatten()).collect()
    }
}

/// What waits to be told, and the connection that tells it.
pub(super) struct Voice {
    instance: Arc<Instance>,
    connection: Kept,
    /// Nothing awaits inside.
    waiting: Mutex<Waiting>,
    came: Notify,
    metrics: Arc<Metrics>,
}

impl Voice {
    pub(super) fn new(
        connector: Connector,
        instance: Arc<Instance>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            instance,
            connection: Kept::new(connector, Role::Beat),
            waiting: Mutex::default(),
            came: Notify::new(),
            metrics,
        }
    }

    /// Has these words sent, soon.
    pub(super) fn tell(&self, words: &mut dyn Iterator<Item = Word>) {
        let mut waiting = self.waiting();
        let dropped = words
            .filter_map(|word| (!waiting.add(word)).then_some(()))
            .count();
        drop(waiting);
        self.dropped(dropped);
        self.came.notify_one();
    }

    /// Sends for ever.
    pub(super) async fn speak(&self) {
        let mut pinged_at: Option<Instant> = None;
        loop {
            let ping_at = pinged_at.map_or_else(Instant::now, |at| at + PING_EVERY);
            let spoken = match tokio::time::timeout_at(ping_at, self.came.notified()).await {
                Ok(()) => self.send_all().await,
                Err(_) => {
                    pinged_at = Some(Instant::now());
                    self.ping().await
                }
            };
            if spoken.is_err() {
                tokio::time::sleep(REST).await;
            }
        }
    }

    async fn ping(&self) -> Result<(), Unheard> {
        let ping = &ping(self.instance.number());
        let send = async |mut connection| {
            let sent = sqlx::query(SEND_PING).bind(ping).execute(&mut connection);
            (sent.await.map(drop), connection)
        };
        self.connection.run(send).await
    }

    async fn send_all(&self) -> Result<(), Unheard> {
        let words = self.waiting().take();
        let payloads = payloads(self.instance.number(), &words);
        for payloads in payloads.chunks(PAYLOADS_MAX) {
            let send = async |mut connection| {
                let sent = sqlx::query(SEND).bind(payloads).execute(&mut connection);
                (sent.await.map(drop), connection)
            };
            if let Err(unheard) = self.connection.run(send).await {
                self.dropped(words.len());
                return Err(unheard);
            }
        }
        self.metrics
            .notifications_sent_total
            .increment(words.len() as u64);
        Ok(())
    }

    fn dropped(&self, words: usize) {
        self.metrics
            .notifications_dropped_total
            .increment(words as u64);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        self.connection.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_each_mailbox_is_named_once() {
        let mut waiting = Waiting::default();
        assert!(waiting.add(Word::Taken(1, 1)));
        for mailbox64 in 0..WAITING_MAX as i64 {
            assert!(waiting.add(Word::Stored(mailbox64)));
        }
        assert!(waiting.add(Word::Stored(5)));
        assert!(!waiting.add(Word::Stored(-1)));
        let words = waiting.take();
        assert_eq!(words.len(), WAITING_MAX + 1);
        assert_eq!(words.last(), Some(&Word::Taken(1, 1)));
        assert!(waiting.take().is_empty());
    }
}
