//! Reads beside the committer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::doubts::Doubts;
use super::errors::is_damage;
use super::exchange::Exchange;
use super::instance::Instance;
use super::keys;
use super::pages::{self, Read, Wanted};
use super::pins;
use super::readers::{Readers, Unread};
use super::recovery;
use super::rows::look_at;
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::store::engine::{ExpiryCursor, HeldInAll, KeysOf, LookedAgain, Pin, Reads};
use crate::store::model::{
    BacklogCursor, Holding, More, OrderKey, Page, PageBounds, RecoveryPage, View,
};
use crate::store::sql::quarantine::Look;

/// Rests of a read that finds only what may not be shown yet: 63 ms in all. Transactions of the relay are
/// shorter; while somebody else's is open on the server, the session comes again once a second.
const RESTS_MILLIS: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// How often a page is read again after damaged rows in it were set apart.
const TRIES_MAX: u32 = 3;

/// The reads of a PostgreSQL database.
pub(super) struct PostgresReads {
    readers: Readers,
    doubts: Doubts,
    instance: Arc<Instance>,
    exchange: Arc<Exchange>,
    secret: Secret,
}

impl PostgresReads {
    pub(super) fn new(
        (readers, doubts): (Readers, Doubts),
        (instance, exchange): (Arc<Instance>, Arc<Exchange>),
        secret: Secret,
    ) -> Self {
        Self {
            readers,
            doubts,
            instance,
            exchange,
            secret,
        }
    }

    /// One page of either kind; waits a moment for what may not be shown yet. A page ends before a row in
    /// doubt; damaged ones are quarantined first, and passed over.
    async fn read_page(
        &self,
        (mailbox, view): (MailboxHash, View),
        after: After,
        (bounds, now): (PageBounds, Timestamp),
    ) -> Result<Page<BacklogCursor>, StoreError> {
        let mut rests = RESTS_MILLIS.into_iter();
        let mut tries = 0;
        loop {
            let quarantined = self.doubts.quarantined();
            let wanted = Wanted {
                mailbox,
                view,
                bounds,
                now,
                quarantined: &quarantined,
                secret: &self.secret,
            };
            let read = self.read_once(&wanted, after).await;
            let in_doubt = match read {
                Ok(Read { page, doubtful }) if doubtful.is_empty() => {
                    match rests.next().filter(|_| page.more == More::Soon) {
                        Some(millis) => {
                            tokio::time::sleep(Duration::from_millis(millis)).await;
                            continue;
                        }
                        None => return Ok(page),
                    }
                }
                Ok(Read { doubtful, .. }) => doubtful,
                Err(Unread::Sql(error)) if is_damage(&error) && tries < TRIES_MAX => {
                    self.damaged_ahead(&mailbox, after.key()).await?
                }
                Err(unread) => return Err(unread.into()),
            };
            tries += 1;
            if tries > TRIES_MAX {
                let why = "reading a stored blob fails at some attempts";
                return Err(StoreError::unavailable(why));
            }
            let with = (&self.readers, &self.secret);
            self.doubts.examine(&in_doubt, with).await?;
        }
    }

    async fn read_once(
        &self,
        wanted: &Wanted<'_>,
        after: After,
    ) -> Result<Read<BacklogCursor>, Unread> {
        let reading = self.readers.read(|mut connection| async move {
            let read = match after {
                After::Key(key) => {
                    let read = pages::page(&mut connection, wanted, key).await;
                    read.map(|read| read.at(|key| BacklogCursor::START.at(0, key)))
                }
                After::Backlog(cursor) => pages::backlog(&mut connection, wanted, cursor).await,
            };
            (read, connection)
        });
        reading.await
    }

    /// Which of the next rows cannot be read: the page as a whole could not be.
    async fn damaged_ahead(
        &self,
        mailbox: &MailboxHash,
        after: OrderKey,
    ) -> Result<Vec<OrderKey>, StoreError> {
        let secret = &self.secret;
        let looking = self.readers.read(|mut connection| async move {
            let looks = async {
                let keys = pages::keys_ahead(&mut connection, mailbox, after).await?;
                look_at(&mut connection, &keys, (secret, false)).await
            };
            (looks.await, connection)
        });
        let bad = looking.await?.into_iter();
        Ok(bad
            .filter_map(|(key, look)| (look == Look::Bad).then_some(key))
            .collect())
    }
}

/// Where a page begins.
#[derive(Debug, Clone, Copy)]
enum After {
    Key(OrderKey),
    Backlog(BacklogCursor),
}

impl After {
    /// Behind this key, or somewhere behind the beginning.
    fn key(self) -> OrderKey {
        match self {
            Self::Key(key) => key,
            Self::Backlog(_) => OrderKey::START,
        }
    }
}

#[async_trait]
impl Reads for PostgresReads {
    async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        let reading = self.read_page((mailbox, view), After::Key(after), (bounds, now));
        let page = reading.await?;
        Ok(Page {
            blobs: page.blobs,
            next: page.next.key,
            more: page.more,
        })
    }

    async fn device_sync_backlog(
        &self,
        mailbox: MailboxHash,
        mut after: BacklogCursor,
        bounds: PageBounds,
        now: Timestamp,
    ) -> Result<Page<BacklogCursor>, StoreError> {
        if after.up_to == OrderKey::START {
            // What is committed later has a larger key than what may be passed now.
            let reading = self.readers.read(|mut connection| async move {
                let key = pages::last_key(&mut connection, &mailbox).await;
                (key, connection)
            });
            after.up_to = reading.await?;
        }
        let after = After::Backlog(after);
        self.read_page((mailbox, View::DeviceSync), after, (bounds, now))
            .await
    }

    async fn holdings(
        &self,
        mailboxes: &[MailboxHash],
        view: View,
        now: Timestamp,
    ) -> Result<Vec<Holding>, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let held = pages::holdings(&mut connection, mailboxes, view, now).await;
            (held, connection)
        });
        let held = reading.await?;
        let of = |mailbox: &MailboxHash| held.get(&mailbox.prefix64()).copied();
        Ok(mailboxes
            .iter()
            .map(|mailbox| of(mailbox).unwrap_or_default())
            .collect())
    }

    async fn recovery(
        &self,
        key_hashes: &[[u8; 32]],
        bytes_max: u64,
        now: Timestamp,
    ) -> Result<RecoveryPage, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let page = recovery::read(&mut connection, key_hashes, bytes_max, now).await;
            (page, connection)
        });
        Ok(reading.await?)
    }

    async fn pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<Option<Pin>>, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let pins = pins::read(&mut connection, mailboxes).await;
            (pins, connection)
        });
        let pins = reading.await?;
        let of = |mailbox: &MailboxHash| pins.get(mailbox).copied();
        Ok(mailboxes.iter().map(of).collect())
    }

    async fn keys(
        &self,
        of: KeysOf,
        after: OrderKey,
        up_to: OrderKey,
        limit: u32,
    ) -> Result<Vec<OrderKey>, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let keys = pages::keys_of(&mut connection, of, (after, up_to), limit).await;
            (keys, connection)
        });
        Ok(reading.await?)
    }

    async fn expired(
        &self,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, bool), StoreError> {
        let one_more = limit.saturating_add(1);
        let reading = self.readers.read(|mut connection| async move {
            let keys = pages::expired(&mut connection, one_more, expired_by).await;
            (keys, connection)
        });
        let mut keys = reading.await?;
        let more = keys.len() > limit as usize;
        keys.truncate(limit as usize);
        Ok((keys, more))
    }

    async fn expired_asking(
        &self,
        from: ExpiryCursor,
        limit: u32,
        expired_by: Timestamp,
    ) -> Result<(Vec<OrderKey>, Option<ExpiryCursor>), StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let found = pages::expired_asking(&mut connection, from, limit, expired_by).await;
            (found, connection)
        });
        Ok(reading.await?)
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let next = pages::next_expiry(&mut connection).await;
            (next, connection)
        });
        Ok(reading.await?)
    }

    async fn horizon(&self) -> Result<OrderKey, StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let key = keys::horizon(&mut connection).await;
            (key, connection)
        });
        Ok(reading.await?)
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.instance.look().await
    }

    async fn does_chores(&self) -> Result<bool, StoreError> {
        self.instance.does_chores().await
    }

    fn held_by_all(&self) -> Option<HeldInAll> {
        self.instance.held()
    }

    async fn look_again(&self) -> Result<LookedAgain, StoreError> {
        self.doubts.look_again(&self.readers, &self.secret).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let reading = self.readers.read(|mut connection| async move {
            let probed = pages::probe(&mut connection).await;
            (probed, connection)
        });
        Ok(reading.await?)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.exchange.close().await;
    }
}
