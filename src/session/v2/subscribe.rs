//! A v2 client opens mailboxes: charged, proven, pinned, joined, in that order.

use std::collections::HashSet;
use std::sync::Arc;

use super::guest::Guest;
use crate::auth::{self, Asked};
use crate::ids::MailboxHash;
use crate::protocol::v2::message::{Opened, Opening, Subscribe};
use crate::service::charge::Client;
use crate::service::refusal::Refusal;
use crate::service::{Holding, OrderKey, View};
use crate::session::Parts;
use crate::session::mailboxes::{Cursor, MAILBOXES_MAX, ToBegin};

/// Whether a proof is good and its pin is set; else the code.
type Verdict = Result<(), &'static str>;

/// What became of one opening; the code says why not.
type Outcome = Result<Opened, &'static str>;

/// More signatures than this are checked on the blocking pool: at 50 µs each, 16 hold a worker for
/// less than a millisecond.
const SIGNATURES_INLINE_MAX: usize = 16;

impl Guest {
    /// What became of each opening, in the order asked, and which mailboxes begin to be delivered.
    pub(super) async fn subscribe(
        &self,
        subscribe: Subscribe,
        parts: &Parts,
    ) -> Result<(Vec<Outcome>, Vec<ToBegin>), Refusal> {
        if let Err(refusal) = self.is_dialled_as(&subscribe.origin, parts) {
            // No opening is charged, so the request is.
            self.charge(parts).await?;
            return Err(refusal);
        }
        let openings = subscribe.openings;
        if self.would_exceed(&openings, parts) {
            // No opening is charged, so the request is: it was read all the same.
            self.charge(parts).await?;
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
        let (openings, mut verdicts) = self.verify(asked, openings, parts).await?;
        self.pin(&openings, &mut verdicts, parts).await;
        self.join(&openings, &verdicts, parts).await
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
    ) -> Result<(Vec<Opening>, Vec<Verdict>), Refusal> {
        let check = move |opening: &Opening| match auth::verify_v2_opening(
            &asked,
            &opening.mailbox,
            opening.signature.as_ref(),
        ) {
            true => Ok(()),
            false => Err(Refusal::Unauthorized.code()),
        };
        // One attempt for the request lets it in, and is given back at once; what turns out bad is charged
        // afterwards. So good proofs cost nothing, however many an address checks at one time. How many
        // may be bad at one time is bounded by the charge for openings.
        if !openings.is_empty() {
            parts.service.begin_proof(self.address)?.succeeded();
        }
        let (openings, verdicts) = if openings.len() > SIGNATURES_INLINE_MAX {
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
        let bad = verdicts.iter().filter(|verdict| verdict.is_err()).count();
        // A spent budget shows at the next request.
        parts.service.proofs_failed(self.address, bad);
        Ok((openings, verdicts))
    }

    /// What was opened by its key is opened only with a proof from now on: all of them in one write. What
    /// cannot be pinned is not opened, or a stranger might be in there next.
    async fn pin(&self, openings: &[Opening], verdicts: &mut [Verdict], parts: &Parts) {
        let by_key = || {
            openings
                .iter()
                .zip(0..)
                .filter(|(opening, _)| !opening.no_pin)
        };
        let good = by_key().filter(|(_, at)| verdicts.get(*at).is_some_and(Result::is_ok));
        let (ids, places): (Vec<_>, Vec<usize>) =
            good.map(|(opening, at)| (opening.mailbox, at)).unzip();
        if ids.is_empty() {
            return;
        }
        let service = &parts.service;
        let pinned = service.pin(&ids, self.address, &self.pin_share).await;
        for (at, pinned) in places.into_iter().zip(pinned) {
            if let (Err(refusal), Some(verdict)) = (pinned, verdicts.get_mut(at)) {
                *verdict = Err(refusal.code());
            }
        }
    }

    /// Joins the hub first and looks second, so that nothing falls between.
    async fn join(
        &self,
        openings: &[Opening],
        verdicts: &[Verdict],
        parts: &Parts,
    ) -> Result<(Vec<Outcome>, Vec<ToBegin>), Refusal> {
        let service = &parts.service;
        let good = || {
            openings
                .iter()
                .zip(verdicts)
                .filter(|(_, good)| good.is_ok())
        };
        let mut hashes = Vec::new();
        let mut to_begin = Vec::new();
        let mut first = None;
        for (opening, _) in good() {
            let mailbox = service.mailbox(&opening.mailbox);
            hashes.push(mailbox);
            if !self.mailboxes.is_open(&mailbox) {
                let (new, client) = self.join_one(mailbox, opening, parts);
                to_begin.push(new);
                first.get_or_insert((opening.mailbox, client));
            }
        }
        let holdings = match service.holdings(hashes.clone()).await {
            Ok(holdings) => holdings,
            Err(refusal) => {
                // Nothing of a refused request is done.
                to_begin.iter().for_each(|new| self.close(&new.mailbox));
                return Err(refusal);
            }
        };
        if let Some((id, client)) = first {
            self.is_called(id, client);
        }
        for ((opening, _), mailbox) in good().zip(&hashes) {
            let tells = opening.tells_senders;
            if self.mailboxes.tell_senders(mailbox, tells) {
                self.inbox.take_live(*mailbox, tells);
            }
        }
        let held = hashes.iter().zip(&holdings);
        let waiting: HashSet<_> = held
            .filter(|(_, holding)| holding.pending > 0)
            .map(|(mailbox, _)| *mailbox)
            .collect();
        for new in &mut to_begin {
            new.has_waiting = waiting.contains(&new.mailbox);
        }
        Ok((outcomes(verdicts, holdings), to_begin))
    }

    fn join_one(
        &self,
        mailbox: MailboxHash,
        opening: &Opening,
        parts: &Parts,
    ) -> (ToBegin, Client) {
        let (id, inbox) = (opening.mailbox, Arc::clone(&self.inbox));
        let service = &parts.service;
        let subscription = service.subscribe(&id, self.address, self.connection, inbox);
        let from = (View::Proven, Cursor::After(OrderKey::START));
        let number = self
            .mailboxes
            .open((mailbox, id), from, Some(subscription.joined));
        let to_begin = ToBegin {
            mailbox,
            number,
            has_waiting: false,
        };
        (to_begin, subscription.client)
    }

    /// Closes a mailbox, if it is open.
    pub(super) fn close(&self, mailbox: &MailboxHash) {
        self.mailboxes.close(mailbox);
        // It has left the hub: no mark comes any more.
        self.inbox.forget(mailbox);
    }
}

/// Of each opening, in the order asked: what a good one holds.
fn outcomes(verdicts: &[Verdict], holdings: Vec<Holding>) -> Vec<Outcome> {
    let mut holdings = holdings.into_iter();
    let of_one = |verdict: &Verdict| {
        (*verdict)?;
        let holding = holdings.next().ok_or(Refusal::Unavailable.code())?;
        Ok(Opened {
            pending: holding.pending,
            blobs: holding.blobs,
            bytes: holding.bytes,
        })
    };
    verdicts.iter().map(of_one).collect()
}
