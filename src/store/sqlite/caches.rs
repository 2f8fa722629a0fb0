//! What the committer's connection remembers of the database, because this process is its only writer.

use super::blobs::Fresh;
use super::columns::Size;
use super::nonces::Nonces;
use super::working_set::{Entry, WorkingSets};
use crate::clock::Timestamp;
use crate::secrets::Secret;
use crate::store::departures::Departures;
use crate::store::engine::{Header, Holder, Plan};
use crate::store::model::OrderKey;
use crate::store::plan::owner_of;

/// Facts that follow what is durable.
pub(super) struct Caches {
    pub(super) sets: WorkingSets,
    pub(super) departures: Departures,
    pub(super) nonces: Nonces,
}

impl Caches {
    /// Nothing of this holder expires before then.
    pub(super) fn look_again(&mut self, holder: Holder, at: Timestamp) {
        match holder {
            Holder::Mailbox(mailbox) => self.sets.set_earliest_expiry(mailbox.prefix64(), at),
            Holder::Owner(owner) => self.sets.owners.set_earliest_expiry(owner.prefix64(), at),
        }
    }

    /// A plan is durable.
    pub(super) fn follow(&mut self, fresh: &[Fresh<'_>], plan: &Plan, secret: &Secret) {
        for Fresh { row, id64 } in fresh {
            let envelope = row.envelope;
            let bytes = envelope.sealed.len() + envelope.body.len();
            let entry = Entry {
                key: row.key.0,
                id64: *id64,
                size: Size::new(bytes, envelope.class),
                expires_from: row.expires_at,
            };
            self.sets.insert(envelope.mailbox.prefix64(), entry);
            if let Some(owner) = owner_of(envelope) {
                let charged = envelope.charged_bytes();
                self.sets.owners.change(owner.hash.prefix64(), |account| {
                    account.add(envelope.class, charged, row.expires_at);
                });
            }
        }
        for (key, header) in plan.deletes.iter().chain(&plan.set_aside) {
            self.leave(*key, header, secret);
        }
        self.departures.remember(&plan.departures);
    }

    fn leave(&mut self, key: OrderKey, header: &Header, secret: &Secret) {
        let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
        let size = Size::new(bytes, header.class);
        let id64 = secret.id64(&header.id);
        self.sets
            .remove(header.mailbox.prefix64(), key.0, id64, size);
        if let Some(owner) = header.owner {
            self.sets.owners.change(owner.prefix64(), |account| {
                account.remove(header.class, header.charged_bytes());
            });
        }
    }
}
