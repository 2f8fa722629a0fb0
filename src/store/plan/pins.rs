//! Mailboxes that only a proof opens, and which of them are forgotten when there are too many.
//!
//! Of pins whose mailbox is empty those that were opened only once go first, because they are what
//! somebody makes who wants to push out others; then the other ones with an empty mailbox, and only
//! then those that protect something; each time the one used least recently. Both engines look at
//! the [`CANDIDATES`] used least recently of either kind and no further, so that a pin costs about
//! the same however many there are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::quota::{HeldInAll, Quota};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::write::Write;

/// Pins of either kind, opened once and more often, among which the next one to go is looked for.
pub const CANDIDATES: usize = 64;

/// The last use is written at most this often.
const LAST_USE_PRECISION: Duration = Duration::from_secs(86_400);

/// Pins beyond the bound that one new pin takes away, after the bound was lowered.
const EVICTED_MAX: u64 = 256;

/// A mailbox that was opened with a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Whether it was opened more than once.
    pub is_often: bool,
    /// Not more than a day before its last use.
    pub last_used: Timestamp,
}

impl Pin {
    pub(in crate::store) fn new(now: Timestamp) -> Self {
        Self {
            is_often: false,
            last_used: now,
        }
    }

    /// What another opening makes of it; `None` when that is not worth a write.
    pub(in crate::store) fn used(self, now: Timestamp) -> Option<Self> {
        let is_old = now.since(self.last_used) >= LAST_USE_PRECISION;
        (is_old || !self.is_often).then_some(Self {
            is_often: true,
            last_used: if is_old { now } else { self.last_used },
        })
    }

    /// Whether it still holds. Never shorter than `max_ttl` from the last use, and so up to a day
    /// longer from the last use that was written.
    pub(in crate::store) fn holds(self, max_ttl: Duration, now: Timestamp) -> bool {
        now.since(self.last_used) < max_ttl.saturating_add(LAST_USE_PRECISION)
    }
}

/// Pins with a smaller rank go first.
pub fn rank(is_often: bool, is_mailbox_empty: bool) -> u8 {
    match (is_mailbox_empty, is_often) {
        (true, false) => 0,
        (true, true) => 1,
        (false, _) => 2,
    }
}

/// What an engine answers about pins.
#[derive(Debug, Default, Clone)]
pub struct KnownPins {
    /// Those that the batch is about.
    pub pins: HashMap<MailboxHash, Pin>,
    /// Those that may go, the next one first.
    pub to_go: VecDeque<MailboxHash>,
    /// Whether there are no others than these.
    pub are_all: bool,
}

/// What a transaction does to pins.
#[derive(Debug, Default)]
pub struct PinPlan {
    /// What becomes of each; `None` for one that goes.
    pub changed: HashMap<MailboxHash, Option<Pin>>,
    /// How many go because there are too many.
    pub(super) evicted: u64,
}

impl PinPlan {
    /// A mailbox was opened with a proof. Tells whether its pin is new.
    pub(super) fn pin(
        &mut self,
        known: &mut KnownPins,
        held: &mut HeldInAll,
        (mailbox, now): (MailboxHash, Timestamp),
        quota: &Quota,
    ) -> bool {
        let current = self.current(known, &mailbox);
        let pin = match current {
            Some(pin) => pin.used(now),
            None => {
                held.pins += 1;
                while quota.pins_beyond(held.pins) > 0 && self.evict(known) {
                    held.pins -= 1;
                }
                Some(Pin::new(now))
            }
        };
        if pin.is_some() {
            self.changed.insert(mailbox, pin);
        }
        current.is_none()
    }

    /// The pin of a mailbox goes, if there is one.
    pub(super) fn unpin(&mut self, known: &KnownPins, held: &mut HeldInAll, mailbox: &MailboxHash) {
        if self.current(known, mailbox).is_some() {
            held.pins = held.pins.saturating_sub(1);
            self.changed.insert(*mailbox, None);
        }
    }

    fn current(&self, known: &KnownPins, mailbox: &MailboxHash) -> Option<Pin> {
        match self.changed.get(mailbox) {
            Some(changed) => *changed,
            None => known.pins.get(mailbox).copied(),
        }
    }

    fn evict(&mut self, known: &mut KnownPins) -> bool {
        let next = loop {
            match known.to_go.pop_front() {
                Some(next) if self.changed.contains_key(&next) => {}
                Some(next) => break Some(next),
                // Nothing is older than what this very batch has used.
                None if known.are_all => break self.oldest_of_batch(),
                None => break None,
            }
        };
        let Some(next) = next else {
            return false;
        };
        self.changed.insert(next, None);
        self.evicted += 1;
        true
    }

    fn oldest_of_batch(&self) -> Option<MailboxHash> {
        let pins = self
            .changed
            .iter()
            .filter_map(|(mailbox, pin)| Some((pin.as_ref()?, mailbox)));
        pins.min_by_key(|(pin, mailbox)| (pin.is_often, pin.last_used, **mailbox))
            .map(|(_, mailbox)| *mailbox)
    }
}

/// How many pins that may go a fold of this batch asks for; zero when none has to go.
pub(super) fn how_many_may_go(
    known: &KnownPins,
    batch: &[&Write],
    held: HeldInAll,
    quota: &Quota,
) -> u64 {
    if quota.pins_max == 0 {
        return 0;
    }
    let touched: HashSet<_> = batch.iter().flat_map(|write| write.pinned()).collect();
    let new = touched
        .iter()
        .filter(|mailbox| !known.pins.contains_key(mailbox));
    let (touched, new) = (touched.len() as u64, new.count() as u64);
    match quota.pins_beyond(held.pins + new) {
        0 => 0,
        // Those that the batch uses are read, too, and do not go.
        beyond => beyond.min(new + EVICTED_MAX) + touched,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = LAST_USE_PRECISION;
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn mailbox(number: u8) -> MailboxHash {
        MailboxHash::from_bytes([number; 32])
    }

    #[test]
    fn the_last_use_is_written_once_a_day_and_the_second_opening_at_once() {
        let first = Pin::new(NOW);
        let second = first.used(NOW.plus(DAY / 2)).unwrap();
        assert_eq!((second.is_often, second.last_used), (true, NOW));
        assert_eq!(second.used(NOW.plus(DAY - Duration::from_millis(1))), None);
        let third = second.used(NOW.plus(DAY)).unwrap();
        assert_eq!(third.last_used, NOW.plus(DAY));
    }

    /// The last use may have been up to a day after the one that was written.
    #[test]
    fn a_pin_never_ends_before_it_was_unused_for_its_time() {
        let pin = Pin::new(NOW);
        assert!(pin.holds(90 * DAY, NOW.plus(91 * DAY - Duration::from_millis(1))));
        assert!(!pin.holds(90 * DAY, NOW.plus(91 * DAY)));
    }

    #[test]
    fn a_batch_larger_than_the_bound_leaves_as_many_as_there_may_be() {
        let quota = Quota {
            pins_max: 2,
            ..Quota::UNBOUNDED
        };
        let mut known = KnownPins {
            to_go: [mailbox(1), mailbox(2)].into(),
            are_all: true,
            ..KnownPins::default()
        };
        let mut held = HeldInAll {
            pins: 2,
            ..HeldInAll::default()
        };
        let mut plan = PinPlan::default();
        for number in 3..=6 {
            plan.pin(&mut known, &mut held, (mailbox(number), NOW), &quota);
        }
        let kept: Vec<_> = plan.changed.values().flatten().collect();
        assert_eq!((kept.len(), held.pins, plan.evicted), (2, 2, 4));
        assert_eq!(plan.changed[&mailbox(1)], None);
        plan.unpin(&known, &mut held, &mailbox(6));
        plan.unpin(&known, &mut held, &mailbox(6));
        assert_eq!(held.pins, 1);
    }
}
