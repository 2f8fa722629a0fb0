//! What was asked of the relay and what it answered, each with the moment; and what must hold after a power cut.
//!
//! Moments are noted so that no promise is claimed too early: a question before it is asked, an answer after it has
//! come.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use vauchi_relay::client::{Blob, Delivery, Item, MailboxId};
use vauchi_relay::clock::Timestamp;

use super::recording::Moment;

/// A request that changes something: when it was asked, and when its answer had come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at: Moment,
    answered: Option<Moment>,
}

impl Asked {
    fn now(at: Moment) -> Self {
        Self { at, answered: None }
    }

    /// Whether a disk that lost its power at this moment may know of it.
    fn may_have_happened(&self, cut: Moment) -> bool {
        self.at < cut
    }

    fn is_promised(&self, cut: Moment) -> bool {
        self.answered.is_some_and(|answered| answered <= cut)
    }
}

/// One blob and what became of it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) blob: Blob,
    submitted: Asked,
    /// Its place among all questions and answers: when it was asked for, and when it was stored.
    order: (u64, u64),
    expires_at: Option<Timestamp>,
    extended: Option<Asked>,
    /// It was acknowledged or cancelled.
    left: Option<Asked>,
    /// The blob with the same topic that came after it.
    replaced_by: Option<usize>,
}

/// All blobs, and who replaces whom.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) sent: Vec<Sent>,
    by_item: HashMap<Item, usize>,
    by_topic: HashMap<(MailboxId, [u8; 32]), usize>,
    events: u64,
}

/// What is wrong with a relay after a power cut.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// Blobs that were answered `Stored` do not come.
    Lost(usize),
    /// Blobs come again whose acknowledgement, cancellation or replacement was confirmed.
    CameBack(usize),
    /// Blobs come that nobody has sent by then.
    Unknown(usize),
    /// Blobs come twice, or with another content or expiry than was answered.
    Changed(usize),
    /// Blobs come before others that were stored before they were sent.
    OutOfOrder(usize),
    /// Anything else, in words.
    Other(String),
}

impl Ledger {
    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    pub(super) fn submits(&mut self, blob: &Blob, at: Moment) -> usize {
        let (number, order) = (self.sent.len(), self.event());
        if let Some(topic) = blob.terms.topic
            && let Some(before) = self.by_topic.insert((blob.mailbox, topic), number)
        {
            self.sent[before].replaced_by = Some(number);
        }
        self.by_item.insert(item_of(blob), number);
        self.sent.push(Sent {
            blob: blob.clone(),
            submitted: Asked::now(at),
            order: (order, u64::MAX),
            expires_at: None,
            extended: None,
            left: None,
            replaced_by: None,
        });
        number
    }

    pub(super) fn stored(&mut self, number: usize, expires_at: Timestamp, at: Moment) {
        let event = self.event();
        let sent = &mut self.sent[number];
        sent.submitted.answered = Some(at);
        sent.order.1 = event;
        sent.expires_at = Some(expires_at);
    }

    /// The blobs of a mailbox whose answers have not come.
    pub(super) fn unanswered(&self, mailbox: MailboxId) -> Vec<(usize, Blob)> {
        let sent = self.sent.iter().enumerate();
        let unanswered =
            sent.filter(|(_, sent)| sent.blob.mailbox == mailbox && sent.expires_at.is_none());
        unanswered
            .map(|(number, sent)| (number, sent.blob.clone()))
            .collect()
    }

    pub(super) fn extends(&mut self, number: usize, at: Moment) {
        self.sent[number].extended = Some(Asked::now(at));
    }

    pub(super) fn extended(&mut self, number: usize, at: Moment) {
        let extended = self.sent[number].extended.as_mut();
        extended.unwrap().answered = Some(at);
    }

    /// It is acknowledged or cancelled; whichever is asked first counts.
    pub(super) fn leaves(&mut self, item: &Item, at: Moment) {
        let left = &mut self.sent[self.by_item[item]].left;
        left.get_or_insert(Asked::now(at));
    }

    pub(super) fn left(&mut self, item: &Item, at: Moment) {
        let left = self.sent[self.by_item[item]].left.as_mut().unwrap();
        left.answered.get_or_insert(at);
    }

    /// Compares what a relay delivers after a power cut with what was promised until then.
    pub(super) fn judge(&self, found: &[Delivery], cut: Moment) -> Vec<Fault> {
        let mut by_number = BTreeMap::new();
        let (mut unknown, mut changed, mut came_back) = (0, 0, 0);
        for delivery in found {
            let number = self.by_item.get(&delivery.item).copied();
            let Some(number) = number.filter(|n| self.sent[*n].submitted.may_have_happened(cut))
            else {
                unknown += 1;
                continue;
            };
            let sent = &self.sent[number];
            changed += usize::from(!sent.is_delivered_as_sent(delivery, cut));
            changed += usize::from(by_number.insert(number, ()).is_some());
            came_back += usize::from(self.has_left(number, cut));
        }
        let is_there = |number: &usize| by_number.contains_key(number);
        let promised = (0..self.sent.len()).filter(|number| self.must_come(*number, cut, is_there));
        let lost = promised.filter(|number| !is_there(number)).count();
        let faults = [
            (lost, Fault::Lost as fn(usize) -> Fault),
            (came_back, Fault::CameBack),
            (unknown, Fault::Unknown),
            (changed, Fault::Changed),
            (self.out_of_order(found), Fault::OutOfOrder),
        ];
        let faults = faults.into_iter().filter(|(count, _)| *count > 0);
        faults.map(|(count, fault)| fault(count)).collect()
    }

    /// Whether it was promised that this blob has left.
    fn has_left(&self, number: usize, cut: Moment) -> bool {
        let left = self.sent[number].left;
        let mut replacing = self.replacing(number);
        left.is_some_and(|left| left.is_promised(cut))
            || replacing.any(|by| self.sent[by].submitted.is_promised(cut))
    }

    /// The blobs with the same topic that came after it.
    fn replacing(&self, number: usize) -> impl Iterator<Item = usize> {
        let after = |number: &usize| self.sent[*number].replaced_by;
        std::iter::successors(after(&number), after)
    }

    /// Whether it was promised that this blob comes. One that may have been replaced comes, or the one that
    /// replaces it does: both happen at once.
    fn must_come(&self, number: usize, cut: Moment, is_there: impl Fn(&usize) -> bool) -> bool {
        let may_have_left = |number: usize| {
            let left = self.sent[number].left;
            left.is_some_and(|left| left.may_have_happened(cut))
        };
        let may_stand_for_it = |by: usize| {
            is_there(&by) || (self.sent[by].submitted.may_have_happened(cut) && may_have_left(by))
        };
        self.sent[number].submitted.is_promised(cut)
            && !may_have_left(number)
            && !self.replacing(number).any(may_stand_for_it)
    }

    /// Blobs that come before others of their mailbox that were stored before they were asked for.
    fn out_of_order(&self, found: &[Delivery]) -> usize {
        let mut last_asked = HashMap::new();
        let mut count = 0;
        for delivery in found {
            let Some(number) = self.by_item.get(&delivery.item) else {
                continue;
            };
            let (asked, stored) = self.sent[*number].order;
            let last = last_asked.entry(delivery.item.mailbox).or_insert(0);
            count += usize::from(stored < *last);
            *last = asked.max(*last);
        }
        count
    }

    /// Some blobs that a relay must know after a cut, whether they wait or have left.
    pub(super) fn remembered(&self, cut: Moment) -> impl Iterator<Item = &Sent> {
        let sent = self.sent.iter();
        sent.filter(move |sent| sent.submitted.is_promised(cut))
    }
}

impl Sent {
    fn is_delivered_as_sent(&self, delivery: &Delivery, cut: Moment) -> bool {
        delivery.body == self.blob.body && self.expires_as_answered(delivery, cut)
    }

    /// Within an hour: a start goes on from the time of the database, which may be a minute old.
    fn expires_as_answered(&self, delivery: &Delivery, cut: Moment) -> bool {
        const HOUR: u64 = 3_600_000;
        // For blobs whose answer did not come there is nothing to compare.
        let Some(answered) = self.expires_at else {
            return true;
        };
        let later = delivery.expires_at.map(|now| now.less(answered));
        let is_as_before = later.is_some_and(|later| later.unsigned_abs() < HOUR);
        let is_extended = later.is_some_and(|later| later > 0) && !is_as_before;
        match self.extended {
            Some(extended) if extended.is_promised(cut) => is_extended,
            Some(extended) if extended.may_have_happened(cut) => is_extended || is_as_before,
            _ => is_as_before,
        }
    }
}

pub(super) fn item_of(blob: &Blob) -> Item {
    Item {
        mailbox: blob.mailbox,
        id: blob.id(),
    }
}

/// A blob's content, which no other has.
pub(super) fn content(number: u64, bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(number).fill(&mut content[..]);
    content.into()
}
