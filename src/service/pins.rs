//! Ids that were opened with a proof are opened only with one from then on: pins, and their bounds.
//!
//! It fails closed. A pin that cannot be set because there are too many is a refusal, which the owner hears. A
//! pin that cannot be saved, as on a full disk, is kept in memory: its owner is let in, to fetch and acknowledge
//! and so make room, and strangers are not.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Service;
use super::refusal::Refusal;
use crate::ids::{MailboxHash, MailboxId};
use crate::limits::table::Budget;

/// Pins that wait in memory until they can be saved: 32 bytes each.
const UNSAVED_MAX: usize = 10_000;

/// Of these so many are saved with the next one that can be.
const SAVED_AT_ONCE: usize = 256;

/// New pins that one connection may set: a quarter of its address's, so that one client of an address does
/// not use up what its neighbours need.
const NEW_PER_CONNECTION: u32 = 256;

/// How often the log says that there are too many pins, or that they cannot be saved.
const TELL_EVERY: Duration = Duration::from_secs(3_600);

/// Pins that could not be saved, and what the operator was told.
#[derive(Debug, Default)]
pub struct Pins {
    /// Nothing awaits under this lock.
    unsaved: Mutex<HashSet<MailboxHash>>,
    told_of_too_many: Told,
    told_of_unsaved: Told,
}

/// When the operator was last told of something. Nothing awaits under the lock.
#[derive(Debug, Default)]
struct Told(Mutex<Option<Instant>>);

/// How many new pins a connection has set.
#[derive(Debug, Default)]
pub struct PinShare(Mutex<u32>);

impl PinShare {
    fn take(&self) -> bool {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *set += 1;
        *set <= NEW_PER_CONNECTION
    }
}

impl Pins {
    fn unsaved(&self) -> MutexGuard<'_, HashSet<MailboxHash>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one in memory; `false` when there are too many.
    fn keep(&self, mailbox: MailboxHash) -> bool {
        let mut unsaved = self.unsaved();
        unsaved.contains(&mailbox) || (unsaved.len() < UNSAVED_MAX && unsaved.insert(mailbox))
    }
}

impl Told {
    /// Whether it is time to tell; then it counts as told.
    fn is_due(&self) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|last| last.elapsed() >= TELL_EVERY);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}

impl Service {
    /// Which of these ids have proved themselves, so that they are opened only with a proof.
    pub async fn are_pinned(&self, ids: &[MailboxId]) -> Result<Vec<bool>, Refusal> {
        let mailboxes: Vec<_> = ids.iter().map(|id| self.mailbox(id)).collect();
        let mut are_pinned = self.saved_pins(&mailboxes).await?;
        let unsaved = self.pins.unsaved();
        for (mailbox, is_pinned) in mailboxes.iter().zip(&mut are_pinned) {
            *is_pinned |= unsaved.contains(mailbox);
        }
        Ok(are_pinned)
    }

    async fn saved_pins(&self, mailboxes: &[MailboxHash]) -> Result<Vec<bool>, Refusal> {
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        let max_ttl = self.parts.blob_ttl;
        Ok(store.are_pinned(mailboxes, max_ttl, now).await?)
    }

    /// Pins ids that were opened with a proof, in one go; from now on they are not opened without. Of each,
    /// in the order given, why it is not pinned and so must not be opened.
    pub async fn pin(
        &self,
        ids: &[MailboxId],
        address: IpAddr,
        share: &PinShare,
    ) -> Vec<Result<(), Refusal>> {
        let mailboxes: Vec<_> = ids.iter().map(|id| self.mailbox(id)).collect();
        let Ok(are_pinned) = self.saved_pins(&mailboxes).await else {
            return self.keep_in_memory(&mailboxes);
        };
        let charged = are_pinned.into_iter().map(|is_pinned| match is_pinned {
            true => Ok(()),
            false => self.charge_new_pin(address, share),
        });
        let charged: Vec<_> = charged.collect();
        let admitted = || {
            mailboxes
                .iter()
                .zip(&charged)
                .filter(|(_, paid)| paid.is_ok())
        };
        let to_save: Vec<_> = admitted().map(|(mailbox, _)| *mailbox).collect();
        let outcomes = match to_save.is_empty() {
            true => Vec::new(),
            false => self.save(to_save).await,
        };
        self.told_of(charged, outcomes)
    }

    fn charge_new_pin(&self, address: IpAddr, share: &PinShare) -> Result<(), Refusal> {
        match share.take() {
            true => self.charge_pin(address),
            false => Err(Refusal::RateLimited {
                budget: Budget::Pins,
                retry_after: Duration::from_secs(1),
            }),
        }
    }

    /// Writes them, and with them some of those that could not be written before.
    async fn save(&self, mailboxes: Vec<MailboxHash>) -> Vec<Result<(), Refusal>> {
        let (store, now) = (&self.parts.store, self.parts.clock.date());
        let unsaved: Vec<_> = {
            let unsaved = self.pins.unsaved();
            let others = unsaved.iter().filter(|other| !mailboxes.contains(other));
            others.take(SAVED_AT_ONCE).copied().collect()
        };
        let all = [mailboxes.as_slice(), &unsaved].concat();
        let time = (self.parts.blob_ttl, self.expired_by());
        let Ok(are_saved) = store.pin(all.clone(), time, now).await else {
            return self.keep_in_memory(&mailboxes);
        };
        let mut waiting = self.pins.unsaved();
        for (mailbox, _) in all.iter().zip(&are_saved).filter(|(_, saved)| **saved) {
            waiting.remove(mailbox);
        }
        let outcome = |is_saved| match is_saved {
            true => Ok(()),
            false => Err(Refusal::RelayFull),
        };
        are_saved
            .into_iter()
            .take(mailboxes.len())
            .map(outcome)
            .collect()
    }

    /// Storage takes no writes: who proves itself is let in, and strangers are not.
    fn keep_in_memory(&self, mailboxes: &[MailboxHash]) -> Vec<Result<(), Refusal>> {
        if self.pins.told_of_unsaved.is_due() {
            tracing::warn!(
                "cannot save the pins of proven mailboxes; keeping them in memory until storage takes writes. This is logged once an hour at most."
            );
        }
        let keep = |mailbox: &MailboxHash| match self.pins.keep(*mailbox) {
            true => Ok(()),
            false => Err(Refusal::Unavailable),
        };
        mailboxes.iter().map(keep).collect()
    }

    /// What became of each, of those that were paid for in the order of `saved`; refusals are counted.
    fn told_of(
        &self,
        charged: Vec<Result<(), Refusal>>,
        saved: Vec<Result<(), Refusal>>,
    ) -> Vec<Result<(), Refusal>> {
        let mut saved = saved.into_iter();
        let outcomes = charged.into_iter().map(|paid| match paid {
            Ok(()) => saved.next().unwrap_or(Err(Refusal::Unavailable)),
            refused => refused,
        });
        let outcomes: Vec<_> = outcomes.collect();
        let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        let refused = u64::try_from(refused).unwrap_or(u64::MAX);
        self.parts.metrics.pins_refused_total.increment(refused);
        let is_full = outcomes.contains(&Err(Refusal::RelayFull));
        if is_full && self.pins.told_of_too_many.is_due() {
            tracing::warn!(
                "refused to open a mailbox: there are RELAY_PINS_MAX pins, and none has been unused for long enough; raise RELAY_PINS_MAX. This is logged once an hour at most."
            );
        }
        outcomes
    }

    /// Takes the pin off: the id may be opened without a proof again.
    pub async fn unpin(&self, ids: &[MailboxId]) -> Result<(), Refusal> {
        let mailboxes: Vec<_> = ids.iter().map(|id| self.mailbox(id)).collect();
        // Most mailboxes have none, and a read is cheaper than a commit.
        let saved = self.saved_pins(&mailboxes).await?;
        let pinned = mailboxes.iter().zip(saved).filter(|(_, saved)| *saved);
        let pinned: Vec<_> = pinned.map(|(mailbox, _)| *mailbox).collect();
        if !pinned.is_empty() {
            self.parts.store.unpin_all(pinned).await?;
        }
        for mailbox in &mailboxes {
            self.pins.unsaved().remove(mailbox);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_operator_is_told_once_an_hour_and_of_each_thing_apart() {
        let pins = Pins::default();
        assert!(pins.told_of_unsaved.is_due() && pins.told_of_too_many.is_due());
        tokio::time::advance(TELL_EVERY - Duration::from_secs(1)).await;
        assert!(!pins.told_of_unsaved.is_due());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(pins.told_of_unsaved.is_due());
        assert!(!pins.told_of_unsaved.is_due());
    }
}
