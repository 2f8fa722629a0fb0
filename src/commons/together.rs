//! One relay of several on a database: its sessions share the memory of their process, and words go to the
//! other relays for the rest.
//!
//! Every wake, notice and live blob serves the sessions here first, as [`Alone`] does, and the others are told.
//! Rates are this process's own. Nothing here is needed for what the relay promises: a word that is lost is a
//! blob that comes a second later, a notice that does not come, or a live blob that is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Alone, Commons, NonceRefused};
use crate::clock::Timestamp;
use crate::hub::{Fate, Hub, LiveBlob, Notice};
use crate::ids::{BlobId, MailboxHash};
use crate::limits::address::Address;
use crate::limits::budgets::{Charge, Spent};
use crate::store::engine::NewRow;
use crate::store::model::OrderKey;
use crate::store::others::{LiveRow, Member, Others, Unheard, Word};

/// How long the others may take to say whether they took a live blob. A relay that does not answer for so long
/// has no session that takes it soon enough.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1_500);

/// How long a handshake waits for the others' word for its nonce, while the database does not answer.
const BURN_TIME_MAX: Duration = Duration::from_secs(1);

/// Live blobs whose answers are waited for, at the most. Beyond that only sessions here are asked.
const AWAITED_MAX: usize = 1_024;

/// Live blobs of others that wait to be handed out here, at the most. The relay that asks for more is told
/// that nobody takes them.
const TO_HAND_MAX: usize = 1_024;

/// The sessions of this process, and words to the others.
pub struct Together {
    here: Alone,
    hub: Arc<Hub>,
    others: Arc<dyn Others>,
    /// Live blobs that the others are asked about. Nothing awaits inside.
    awaited: Mutex<HashMap<u64, mpsc::Sender<u32>>>,
    to_hand: (mpsc::Sender<u64>, Mutex<Option<mpsc::Receiver<u64>>>),
}

/// A live blob that is asked about; when it is dropped, answers come to nothing.
struct Awaited<'a> {
    number: u64,
    of: &'a Together,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.of.awaited().remove(&self.number);
    }
}

impl Together {
    /// Among the sessions of `here`, which join this hub, and these others.
    pub fn new(here: Alone, hub: Arc<Hub>, others: Arc<dyn Others>) -> Self {
        let (to_hand, waiting) = mpsc::channel(TO_HAND_MAX);
        Self {
            here,
            hub,
            others,
            awaited: Mutex::default(),
            to_hand: (to_hand, Mutex::new(Some(waiting))),
        }
    }

    /// Speaks with the others, for ever.
    pub async fn run(&self) {
        let heard = |words| self.heard(words);
        let found = |rows: Vec<(i64, OrderKey)>| {
            for (mailbox64, key) in rows {
                self.hub.catch_up(mailbox64, key);
            }
        };
        tokio::join!(
            self.others.speak(),
            self.others.listen(&heard),
            self.others.catch_up(&found),
            self.hand_out(),
        );
    }

    fn heard(&self, words: Vec<Word>) {
        for word in words {
            match word {
                Word::Stored(mailbox64) => self.hub.look(mailbox64),
                Word::Delivered(blob) => self.tell_awaiting(&blob, Fate::Delivered),
                Word::Acknowledged(blob) => self.tell_awaiting(&blob, Fate::Acknowledged),
                Word::Notice {
                    sender64,
                    blob,
                    is_acknowledged,
                    name,
                } => {
                    let fate = match is_acknowledged {
                        true => Fate::Acknowledged,
                        false => Fate::Delivered,
                    };
                    let notice = Notice { name, blob, fate };
                    self.here.pass_on(sender64, &notice);
                }
                Word::Live(number, mailbox64) => {
                    let takes = self.hub.takes_live(mailbox64);
                    if !takes || self.to_hand.0.try_send(number).is_err() {
                        self.say(Word::Taken(number, 0));
                    }
                }
                Word::Taken(number, sessions) => {
                    if let Some(answers) = self.awaited().get(&number) {
                        // Whoever asked may have its answer.
                        answers.try_send(sessions).ok();
                    }
                }
            }
        }
    }

    /// Tells a sender that waits here what became of its blob, on its connections here and elsewhere.
    fn tell_awaiting(&self, blob: &BlobId, fate: Fate) {
        let Some((sender, notice)) = self.here.told(blob, fate) else {
            return;
        };
        if self.others.count() > 0 {
            self.say(Word::Notice {
                sender64: sender.prefix64(),
                blob: notice.blob,
                is_acknowledged: notice.fate == Fate::Acknowledged,
                name: notice.name,
            });
        }
    }

    /// Hands out live blobs of the others, for ever.
    async fn hand_out(&self) {
        let waiting = self
            .to_hand
            .1
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut waiting) = waiting else {
            return std::future::pending().await;
        };
        while let Some(number) = waiting.recv().await {
            let row = self.others.live(number).await;
            let taken = match row {
                Ok(Some(row)) => self.hub.hand(&blob_of(row)),
                Ok(None) | Err(_) => 0,
            };
            let taken = u32::try_from(taken).unwrap_or(u32::MAX);
            self.say(Word::Taken(number, taken));
        }
    }

    /// Has the others hand out a live blob; returns how many sessions took it, and at the first that did when
    /// nobody here has.
    async fn ask_others(&self, blob: &LiveBlob, is_taken: bool) -> usize {
        let others = self.others.count();
        let (answers, mut taken) = mpsc::channel(others.max(1) as usize);
        let number = rand::random();
        {
            let mut awaited = self.awaited();
            if others == 0 || awaited.len() >= AWAITED_MAX {
                return 0;
            }
            awaited.insert(number, answers);
        }
        let awaited = Awaited { number, of: self };
        let until = Instant::now() + ANSWER_TIME_MAX;
        let row = row_of(blob);
        let put = tokio::time::timeout_at(until, self.others.put_live(number, &row));
        if !matches!(put.await, Ok(Ok(()))) || is_taken {
            return 0;
        }
        for _ in 0..others {
            match tokio::time::timeout_at(until, taken.recv()).await {
                Ok(Some(0)) => {}
                Ok(Some(sessions)) => return sessions as usize,
                Ok(None) | Err(_) => break,
            }
        }
        drop(awaited);
        0
    }

    fn say(&self, word: Word) {
        self.others.tell(&mut std::iter::once(word));
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<u32>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row_of(blob: &LiveBlob) -> LiveRow {
    LiveRow {
        mailbox: blob.mailbox,
        id: blob.id,
        handed_at: blob.handed_at,
        body: blob.body.clone(),
    }
}

fn blob_of(row: LiveRow) -> LiveBlob {
    LiveBlob {
        mailbox: row.mailbox,
        id: row.id,
        handed_at: row.handed_at,
        body: row.body,
    }
}

#[async_trait]
impl Commons for Together {
    /// While the store cannot write, the others' word for it is all there is; when nothing can be asked, nobody
    /// can read either.
    async fn burn(
        &self,
        nonce: [u8; 32],
        expired_by: Timestamp,
        now: Timestamp,
    ) -> Result<(), NonceRefused> {
        self.here.burn(nonce, expired_by, now).await?;
        if self.others.count() == 0 {
            return Ok(());
        }
        match tokio::time::timeout(BURN_TIME_MAX, self.others.burn(nonce)).await {
            Ok(Ok(false)) => Err(NonceRefused::Used),
            Ok(Ok(true) | Err(_)) | Err(_) => Ok(()),
        }
    }

    async fn lease(&self, charges: &[Charge], address: Address) -> Result<(), Spent> {
        self.here.lease(charges, address).await
    }

    async fn hand(&self, blob: &LiveBlob) -> usize {
        let here = self.here.hand(blob).await;
        here + self.ask_others(blob, here > 0).await
    }

    fn woke(&self, rows: &[NewRow<'_>]) {
        self.here.woke(rows);
        if self.others.count() > 0 {
            let stored = rows.iter().map(|row| row.envelope.mailbox.prefix64());
            self.others.tell(&mut stored.map(Word::Stored));
        }
    }

    fn came_back(&self, mailbox: MailboxHash, key: OrderKey) {
        self.here.came_back(mailbox, key);
    }

    fn await_fate(&self, blob: BlobId, sender: MailboxHash, name: &str) {
        self.here.await_fate(blob, sender, name);
    }

    async fn relays(&self) -> Result<Option<Vec<Member>>, Unheard> {
        self.others.members().await.map(Some)
    }

    fn tell(&self, blob: &BlobId, fate: Fate) {
        if self.here.awaits(blob) {
            self.tell_awaiting(blob, fate);
        } else if self.others.count() > 0 {
            self.say(match fate {
                Fate::Delivered => Word::Delivered(*blob),
                Fate::Acknowledged => Word::Acknowledged(*blob),
            });
        }
    }
}
