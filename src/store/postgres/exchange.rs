//! The other relays on the same database: what they are told, what they tell, and what nobody told.
//!
//! `voice` speaks, `listen` hears here. Notifications may be lost with a connection or with a relay that is
//! killed between its commit and its word, so once a second each relay reads which mailboxes got something a
//! second before. That is one read of the newest keys. It stops, as a page does, before the first key at which
//! something smaller can still appear, and so nothing is passed over.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::{HashMap, HashMapExt as _};
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgListener, PgRow};
use tokio::sync::Notify;

use super::columns::{blob_id, fixed, millis, timestamp, uuid};
use super::connect::{Connector, Role};
use super::instance::Instance;
use super::kept::Kept;
use super::keys::EDGE;
use super::members;
use super::payloads::read;
use super::voice::{CHANNEL, Voice};
use crate::ids::MailboxHash;
use crate::metrics::Metrics;
use crate::store::model::OrderKey;
use crate::store::others::{LiveRow, Member, OnRows, OnWords, Others, Serving, Unheard, Word};

/// Between two looks at what was stored.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Rows that one look reads at once; it goes on until it has read all.
const ROWS_MAX: usize = 4_096;

/// A connection on which nothing was heard for so long, not even the own voice, is replaced.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Rest before the next attempt to listen.
const REST: Duration = Duration::from_secs(1);

static STORED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT edge.pos AS edge, b.pos, b.mailbox64 FROM (SELECT {EDGE} AS pos) AS edge \
         LEFT JOIN LATERAL (SELECT pos, mailbox64 FROM blob WHERE pos >= $1 AND pos < $2 \
         ORDER BY pos LIMIT $3) AS b ON true ORDER BY b.pos"
    )
});

/// The others, as this relay reaches them.
pub(super) struct Exchange {
    instance: Arc<Instance>,
    connector: Connector,
    voice: Voice,
    /// Reads what was stored.
    looks: Kept,
    /// For live blobs and nonces.
    aside: Kept,
    /// For the operator: a question that takes its time delays nobody else's.
    asked: Kept,
    /// Everything with a smaller key was there when this relay started.
    start: OrderKey,
    /// Words may have been missed.
    missed: Notify,
    metrics: Arc<Metrics>,
}

impl Exchange {
    pub(super) fn new(
        connector: Connector,
        instance: Arc<Instance>,
        start: OrderKey,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            voice: Voice::new(
                connector.clone(),
                Arc::clone(&instance),
                Arc::clone(&metrics),
            ),
            looks: Kept::new(connector.clone(), Role::Reader),
            aside: Kept::new(connector.clone(), Role::Beat),
            asked: Kept::new(connector.clone(), Role::Beat),
            instance,
            connector,
            start,
            missed: Notify::new(),
            metrics,
        }
    }

    /// Hears words until the connection fails or falls silent.
    async fn hear(&self, listener: &mut PgListener, heard: OnWords<'_>) {
        let mut next = async || tokio::time::timeout(SILENCE_MAX, listener.try_recv()).await;
        while let Ok(Ok(Some(notification))) = next().await {
            let Some((from, words)) = read(notification.payload()) else {
                continue;
            };
            if from != self.instance.number() && !words.is_empty() {
                self.metrics
                    .notifications_received_total
                    .increment(words.len() as u64);
                heard(words);
            }
        }
    }

    /// Looks at what was stored from `from` on and before `until`; returns where it has stopped before that,
    /// if it has, and before which key the next look may go.
    async fn look(
        &self,
        (from, until): (OrderKey, OrderKey),
        found: OnRows<'_>,
    ) -> Result<(Option<OrderKey>, OrderKey), Unheard> {
        let read = async |mut connection| {
            let rows = sqlx::query(STORED.as_str())
                .bind(from.0)
                .bind(until.0)
                .bind(ROWS_MAX as i64)
                .fetch_all(&mut connection)
                .await;
            let rows = rows.and_then(|rows: Vec<PgRow>| {
                let mut mailboxes: HashMap<i64, OrderKey> = HashMap::new();
                let (mut edge, mut last) = (from, None);
                for row in &rows {
                    edge = OrderKey(row.try_get("edge")?);
                    if let Some(pos) = row.try_get::<Option<i64>, _>("pos")? {
                        mailboxes.insert(row.try_get("mailbox64")?, OrderKey(pos));
                        last = Some(OrderKey(pos + 1));
                    }
                }
                let stopped = last.filter(|_| rows.len() >= ROWS_MAX);
                Ok((mailboxes, stopped, edge))
            });
            (rows, connection)
        };
        let (mailboxes, stopped, edge) = self.looks.run(read).await?;
        if !mailboxes.is_empty() {
            found(mailboxes.into_iter().collect());
        }
        Ok((stopped, edge))
    }

    /// Looks at all from `from` on and before `until`; returns before which key the next look may go. When it
    /// fails, `from` is where it goes on.
    async fn look_at_all(
        &self,
        (from, until): (&mut OrderKey, OrderKey),
        found: OnRows<'_>,
    ) -> Result<OrderKey, Unheard> {
        loop {
            let (stopped, edge) = self.look((*from, until), found).await?;
            match stopped {
                Some(at) => *from = at,
                None => {
                    *from = until.max(*from);
                    return Ok(edge);
                }
            }
        }
    }

    pub(super) async fn close(&self) {
        self.voice.close().await;
        self.looks.close().await;
        self.aside.close().await;
        self.asked.close().await;
    }
}

/// Before this key everything is there that ever will be.
pub(super) async fn edge(connection: &mut PgConnection) -> sqlx::Result<OrderKey> {
    let statement = sqlx::AssertSqlSafe(format!("SELECT {EDGE} AS pos"));
    let row = sqlx::query(statement).fetch_one(connection).await?;
    row.try_get("pos").map(OrderKey)
}

#[async_trait]
impl Others for Exchange {
    fn count(&self) -> u32 {
        self.instance.others()
    }

    fn serves(&self, serving: Serving) {
        self.instance.serves(serving);
    }

    async fn members(&self) -> Result<Vec<Member>, Unheard> {
        let own = self.instance.number();
        let read = async |mut connection| {
            let members = members::read(&mut connection, own).await;
            (members, connection)
        };
        self.asked.run(read).await
    }

    fn drains(&self) {
        self.instance.drains();
    }

    fn tell(&self, words: &mut dyn Iterator<Item = Word>) {
        self.voice.tell(words);
    }

    async fn speak(&self) {
        self.voice.speak().await;
    }

    async fn listen(&self, heard: OnWords<'_>) {
        loop {
            match self.connector.listen(CHANNEL).await {
                Ok(mut listener) => {
                    self.missed.notify_one();
                    self.hear(&mut listener, heard).await;
                    self.metrics.notification_reconnects_total.increment(1);
                    tokio::time::sleep(REST / 10).await;
                }
                Err(_) => tokio::time::sleep(REST).await,
            }
        }
    }

    async fn catch_up(&self, found: OnRows<'_>) {
        let (mut from, mut until) = (self.start, self.start);
        loop {
            let waiting = tokio::time::timeout(LOOK_EVERY, self.missed.notified());
            let is_missed = waiting.await.is_ok();
            // What was stored within the last second is not looked at yet: word of it may be on its way.
            let mut looked = self.look_at_all((&mut from, until), found).await;
            if let (true, Ok(edge)) = (is_missed, &looked) {
                until = *edge;
                looked = self.look_at_all((&mut from, until), found).await;
            }
            if let Ok(edge) = looked {
                until = edge;
            }
        }
    }

    async fn burn(&self, nonce: [u8; 32]) -> Result<bool, Unheard> {
        let burn = async |mut connection| {
            let burnt =
                sqlx::query("INSERT INTO recent_nonce (nonce) VALUES ($1) ON CONFLICT DO NOTHING")
                    .bind(nonce)
                    .execute(&mut connection)
                    .await;
            (burnt.map(|burnt| burnt.rows_affected() > 0), connection)
        };
        self.aside.run(burn).await
    }

    async fn put_live(&self, number: u64, row: &LiveRow) -> Result<(), Unheard> {
        let words = [Word::Live(number, row.mailbox.prefix64())];
        let payloads = super::payloads::payloads(self.instance.number(), &words);
        let put = async |mut connection| {
            let put = sqlx::query(
                "WITH put AS (INSERT INTO live (n, handed_at, id, mailbox, body) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT DO NOTHING) SELECT pg_notify('vauchi_relay', payload) FROM unnest($6::text[]) AS payload",
            )
            .bind(number.cast_signed())
            .bind(millis(row.handed_at))
            .bind(uuid(&row.id))
            .bind(row.mailbox.as_bytes().as_slice())
            .bind(&*row.body)
            .bind(&payloads)
            .execute(&mut connection)
            .await;
            (put.map(drop), connection)
        };
        self.aside.run(put).await?;
        self.metrics.notifications_sent_total.increment(1);
        Ok(())
    }

    async fn live(&self, number: u64) -> Result<Option<LiveRow>, Unheard> {
        let read = async |mut connection| {
            let row = sqlx::query("SELECT handed_at, id, mailbox, body FROM live WHERE n = $1")
                .bind(number.cast_signed())
                .fetch_optional(&mut connection)
                .await;
            let row = row.and_then(|row| row.map(|row| live_row(&row)).transpose());
            (row, connection)
        };
        self.aside.run(read).await
    }
}

fn live_row(row: &PgRow) -> sqlx::Result<LiveRow> {
    Ok(LiveRow {
        mailbox: MailboxHash::from_bytes(fixed(row, "mailbox")?),
        id: blob_id(row, "id")?,
        handed_at: timestamp(row, "handed_at")?,
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
    })
}
