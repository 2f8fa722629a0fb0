//! A relay of one process: its sessions share the memory of that process.

use std::sync::Arc;

use async_trait::async_trait;

use super::nonces::Nonces;
use super::notices::Notices;
use super::{Commons, NonceRefused};
use crate::clock::Timestamp;
use crate::hub::{Fate, Hub, LiveBlob, Notice};
use crate::ids::{BlobId, MailboxHash};
use crate::limits::address::Address;
use crate::limits::budgets::{Budgets, Charge, Spent};
use crate::metrics::Metrics;
use crate::store::engine::NewRow;
use crate::store::model::OrderKey;
use crate::store::others::{Member, Unheard};

/// The sessions of one process. Nothing in here ever waits.
pub struct Alone {
    hub: Arc<Hub>,
    budgets: Arc<Budgets>,
    nonces: Nonces,
    notices: Notices,
}

impl Alone {
    /// Among the sessions that join this hub and live off these budgets.
    pub fn new(hub: Arc<Hub>, budgets: Arc<Budgets>, metrics: Arc<Metrics>) -> Self {
        Self {
            notices: Notices::new(Arc::clone(&hub), metrics),
            nonces: Nonces::default(),
            hub,
            budgets,
        }
    }
}

impl Alone {
    /// Tells a sender here what became of its blob, if it waits to hear it. Who was told what.
    pub(super) fn told(&self, blob: &BlobId, fate: Fate) -> Option<(MailboxHash, Notice)> {
        match fate {
            Fate::Delivered => self.notices.delivered(blob),
            Fate::Acknowledged => self.notices.acknowledged(blob),
        }
    }

    /// Passes on what another relay has to tell to a sender that may be connected here.
    pub(super) fn pass_on(&self, sender64: i64, notice: &Notice) {
        self.notices.pass_on(sender64, notice);
    }

    /// Whether a sender here waits to hear what becomes of this blob.
    pub(super) fn awaits(&self, blob: &BlobId) -> bool {
        self.notices.awaits(blob)
    }
}

#[async_trait]
impl Commons for Alone {
    async fn burn(
        &self,
        nonce: [u8; 32],
        expired_by: Timestamp,
        now: Timestamp,
    ) -> Result<(), NonceRefused> {
        self.nonces.burn(nonce, expired_by, now)
    }

    async fn lease(&self, charges: &[Charge], address: Address) -> Result<(), Spent> {
        self.budgets.take(charges, address)
    }

    async fn hand(&self, blob: &LiveBlob) -> usize {
        self.hub.hand(blob)
    }

    fn woke(&self, rows: &[NewRow<'_>]) {
        self.hub.news(rows);
    }

    fn came_back(&self, mailbox: MailboxHash, key: OrderKey) {
        self.hub.go_back(mailbox, key);
    }

    fn await_fate(&self, blob: BlobId, sender: MailboxHash, name: &str) {
        self.notices.await_fate(blob, sender, name);
    }

    async fn relays(&self) -> Result<Option<Vec<Member>>, Unheard> {
        Ok(None)
    }

    fn tell(&self, blob: &BlobId, fate: Fate) {
        // Nobody else is to be told.
        drop(self.told(blob, fate));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::limits::table::Budget;

    #[test]
    fn nobody_waits_where_there_is_nobody_else_to_ask() {
        let (clock, _) = Clock::manual(Timestamp::from_millis(0));
        let (config, metrics) = (Config::default(), Arc::new(Metrics::new()));
        let budgets = Arc::new(Budgets::new(&config, clock, &metrics));
        let charge = [budgets.key(Budget::Client, 1).costs(1)];
        let commons: Box<dyn Commons> = Box::new(Alone::new(Arc::default(), budgets, metrics));
        let address = Address::of([192, 0, 2, 1].into());
        assert_eq!(commons.lease(&charge, address).now_or_never(), Some(Ok(())));
        let now = Timestamp::default();
        let burn = || commons.burn([1; 32], now, now).now_or_never();
        assert_eq!(burn(), Some(Ok(())));
        assert_eq!(burn(), Some(Err(NonceRefused::Used)));
        let blob = LiveBlob {
            mailbox: MailboxHash::from_bytes([1; 32]),
            id: BlobId::from_bytes([1; 16]),
            handed_at: Timestamp::default(),
            body: Bytes::new(),
        };
        assert_eq!(commons.hand(&blob).now_or_never(), Some(0));
    }
}
