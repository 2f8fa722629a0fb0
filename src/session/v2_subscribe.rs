//! A v2 client opens mailboxes: charged, proven, pinned, joined, in that order.

use std::sync::Arc;

use super::Parts;
use super::answers::Answers;
use super::mailboxes::{Cursor, MAILBOXES_MAX};
use super::v2_requests::Guest;
use crate::auth::{self, Asked};
use crate::ids::{MailboxHash, MailboxId};
use crate::protocol::message_v2::{Opened, Opening, OpeningProof, Subscribe};
use crate::service::refusal::Refusal;
use crate::service::{OrderKey, View};

/// More signatures than this are checked on the blocking pool: at 50 µs each, 16 hold a worker for
/// less than a millisecond.
const SIGNATURES_INLINE_MAX: usize = 16;

impl Guest {
    /// What became of each opening, in the order asked.
    pub(super) async fn subscribe(
        &self,
        subscribe: Subscribe,
        answers: Answers<'_>,
    ) -> Result<Vec<Result<Opened, &'static str>>, Refusal> {
        let parts = answers.parts;
        let openings = subscribe.openings;
        if self.would_exceed(&openings, parts) {
            return Err(Refusal::TooManyMailboxes);
        }
        // It asks storage even when it names none.
        let count = u32::try_from(openings.len()).unwrap_or(u32::MAX).max(1);
        let service = &parts.service;
        service.charge_openings(self.connection, self.address, count)?;
        let asked = Asked {
            relay_id: *service.relay_id(),
            challenge: self.challenge,
            origin: subscribe.origin,
        };
        let (openings, verdicts) = self.verify(asked, openings, parts).await?;
        for (opening, is_good) in openings.iter().zip(&verdicts) {
            if *is_good {
                self.pin(opening, parts).await;
            }
        }
        self.join(&openings, &verdicts, answers).await
    }

    /// Judged before any proof is checked.
    fn would_exceed(&self, openings: &[Opening], parts: &Parts) -> bool {
        if openings.len() > MAILBOXES_MAX {
            return true;
        }
        if self.mailboxes.count() + openings.len() <= MAILBOXES_MAX {
            return false;
        }
        let mut new: Vec<_> = openings
            .iter()
            .map(|opening| parts.service.mailbox(&opening.mailbox))
            .filter(|mailbox| !self.mailboxes.is_open(mailbox))
            .collect();
        new.sort_unstable();
        new.dedup();
        self.mailboxes.count() + new.len() > MAILBOXES_MAX
    }

    /// Whether each proof is good. An address with too many that are not is refused before the check.
    async fn verify(
        &self,
        asked: Asked,
        openings: Vec<Opening>,
        parts: &Parts,
    ) -> Result<(Vec<Opening>, Vec<bool>), Refusal> {
        let serves = parts.settings.v2.serves(&asked.origin);
        let check = move |opening: &Opening| {
            let is_good = auth::verify_v2_opening(&asked, &opening.mailbox, &opening.proof);
            let is_bound = !matches!(opening.proof, OpeningProof::Signature(_)) || serves;
            is_good && is_bound
        };
        // One attempt for the request lets it in; what turns out bad beyond it is charged afterwards,
        // so that hundreds of good proofs at once cost nothing. How many may be bad at once is bounded
        // by the charge for openings.
        let attempt = parts.service.begin_proof(self.address)?;
        let signatures = openings
            .iter()
            .filter(|opening| !matches!(opening.proof, OpeningProof::Secret(_)))
            .count();
        let (openings, verdicts) = if signatures > SIGNATURES_INLINE_MAX {
            tokio::task::spawn_blocking(move || {
                let verdicts: Vec<_> = openings.iter().map(check).collect();
                (openings, verdicts)
            })
            .await
            .map_err(|_| Refusal::Unavailable)?
        } else {
            let verdicts = openings.iter().map(check).collect();
            (openings, verdicts)
        };
        let bad = verdicts.iter().filter(|is_good| !**is_good).count();
        match bad {
            0 => attempt.succeeded(),
            // A spent budget shows at the next request.
            bad => attempt.failed(bad),
        }
        Ok((openings, verdicts))
    }

    /// What was opened by its key is opened only with a proof from now on. Whoever proves itself is
    /// let in also while nothing can be written; the pin is set the next time.
    async fn pin(&self, opening: &Opening, parts: &Parts) {
        let by_key = matches!(opening.proof, OpeningProof::Signature(_));
        let service = &parts.service;
        if by_key && service.pin(&opening.mailbox, self.address).await.is_err() {
            tracing::warn!("an id that proved itself could not be pinned");
        }
    }

    /// Joins the hub first and looks second, so that nothing falls between.
    async fn join(
        &self,
        openings: &[Opening],
        verdicts: &[bool],
        answers: Answers<'_>,
    ) -> Result<Vec<Result<Opened, &'static str>>, Refusal> {
        let service = &answers.parts.service;
        let good = openings.iter().zip(verdicts).filter(|(_, good)| **good);
        let mut hashes = Vec::new();
        let mut tells = Vec::new();
        let mut new = Vec::new();
        for (opening, _) in good {
            let mailbox = service.mailbox(&opening.mailbox);
            hashes.push(mailbox);
            tells.push(opening.tells_senders);
            if !self.mailboxes.is_open(&mailbox) {
                self.join_one(mailbox, opening.mailbox, answers.parts);
                new.push(mailbox);
            }
        }
        let holdings = match service.holdings(hashes.clone()).await {
            Ok(holdings) => holdings,
            Err(refusal) => {
                // Nothing of a refused request is done.
                new.iter().for_each(|mailbox| self.close(mailbox));
                return Err(refusal);
            }
        };
        for (mailbox, tells) in hashes.iter().zip(tells) {
            self.wakes.take_live(*mailbox, tells);
            self.mailboxes.tell_senders(mailbox, tells);
        }
        let mut held = hashes.iter().zip(holdings);
        let outcomes = verdicts.iter().map(|is_good| {
            let held = is_good.then(|| held.next()).flatten();
            let (mailbox, holding) = held.ok_or(Refusal::Unauthorized.code())?;
            self.mailboxes.begin(mailbox, holding.pending > 0);
            Ok(Opened {
                pending: holding.pending,
                blobs: holding.blobs,
                bytes: holding.bytes,
            })
        });
        let outcomes = outcomes.collect();
        answers.shared.unblocked.wake();
        Ok(outcomes)
    }

    fn join_one(&self, mailbox: MailboxHash, id: MailboxId, parts: &Parts) {
        let wakes = Arc::clone(&self.wakes);
        let service = &parts.service;
        let subscription = service.subscribe(&id, self.address, self.connection, wakes);
        self.is_called(id, subscription.client);
        let from = (View::Proven, Cursor::After(OrderKey::START));
        self.mailboxes
            .open((mailbox, id), from, false, Some(subscription));
    }

    /// Closes a mailbox, if it is open.
    pub(super) fn close(&self, mailbox: &MailboxHash) {
        self.wakes.take_live(*mailbox, false);
        self.mailboxes.close(mailbox);
    }
}
