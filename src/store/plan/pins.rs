//! Mailboxes that only a proof opens.
//!
//! A pin ends when it was unused for its time, and not before: with as many as there may be, a new one is
//! refused, unless one that is over makes room.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::time::Duration;

use foldhash::{HashMap, HashSet};

use super::quota::{HeldInAll, Quota};
use crate::clock::Timestamp;
use crate::ids::MailboxHash;
use crate::store::write::Write;

/// The last use is written at most this often.
const LAST_USE_PRECISION: Duration = Duration::from_secs(86_400);

/// Pins beyond the bound that one new pin takes away, after the bound was lowered.
const EVICTED_MAX: u64 = 256;

/// A mailbox that was opened with a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Not more than a day before its last use.
    pub last_used: Timestamp,
}

impl Pin {
    pub(in crate::store) fn new(now: Timestamp) -> Self {
        Self { last_used: now }
    }

    /// What another opening makes of it; `None` when that is not worth a write.
    pub(in crate::store) fn used(self, now: Timestamp) -> Option<Self> {
        let is_old = now.since(self.last_used) >= LAST_USE_PRECISION;
        is_old.then_some(Self { last_used: now })
    }

    /// Whether it still holds. Never shorter than `max_ttl` from the last use, and so up to a day
    /// longer from the last use that was written.
    pub(in crate::store) fn holds(self, max_ttl: Duration, now: Timestamp) -> bool {
        now.since(self.last_used) < max_ttl.saturating_add(LAST_USE_PRECISION)
    }
}

/// Pins that were last used by then are over at `now`.
pub(in crate::store) fn over_by(max_ttl: Duration, now: Timestamp) -> Timestamp {
    now.minus(max_ttl.saturating_add(LAST_USE_PRECISION))
}

/// What an engine answers about pins.
#[derive(Debug, Default, Clone)]
pub struct KnownPins {
    /// Those that the batch is about.
    pub pins: HashMap<MailboxHash, Pin>,
    /// Those that are over, the one least recently used first.
    pub to_go: VecDeque<MailboxHash>,
}

/// What a transaction does to pins.
#[derive(Debug, Default)]
pub struct PinPlan {
    /// What becomes of each; `None` for one that goes.
    pub changed: HashMap<MailboxHash, Option<Pin>>,
    /// How many go because they are over and others come.
    pub(super) evicted: u64,
}

impl PinPlan {
    /// A mailbox was opened with a proof. Tells whether it is pinned now.
    pub(super) fn pin(
        &mut self,
        known: &mut KnownPins,
        held: &mut HeldInAll,
        (mailbox, now): (MailboxHash, Timestamp),
        quota: &Quota,
    ) -> bool {
        let pin = match self.current(known, &mailbox) {
            Some(pin) => pin.used(now),
            None => {
                while quota.pins_beyond(held.pins + 1) > 0 && self.evict(known) {
                    held.pins -= 1;
                }
                if quota.pins_beyond(held.pins + 1) > 0 {
                    return false;
                }
                held.pins += 1;
                Some(Pin::new(now))
            }
        };
        if pin.is_some() {
            self.changed.insert(mailbox, pin);
        }
        true
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
        while let Some(next) = known.to_go.pop_front() {
            // What this very batch has used is no longer over.
            if let Entry::Vacant(unchanged) = self.changed.entry(next) {
                unchanged.insert(None);
                self.evicted += 1;
                return true;
            }
        }
        false
    }
}

/// How many pins that are over a fold of this batch asks for; zero when none has to go.
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
    fn the_last_use_is_written_once_a_day() {
        let first = Pin::new(NOW);
        assert_eq!(first.used(NOW.plus(DAY - Duration::from_millis(1))), None);
        let second = first.used(NOW.plus(DAY)).unwrap();
        assert_eq!(second.last_used, NOW.plus(DAY));
    }

    /// The last use may have been up to a day after the one that was written.
    #[test]
    fn a_pin_never_ends_before_it_was_unused_for_its_time() {
        let pin = Pin::new(NOW);
        let ends = NOW.plus(91 * DAY);
        assert!(pin.holds(90 * DAY, ends.minus(Duration::from_millis(1))));
        assert!(!pin.holds(90 * DAY, ends));
        // What goes is over, and what is over may go.
        assert_eq!(over_by(90 * DAY, ends), NOW);
    }

    #[test]
    fn as_many_come_as_make_room_and_the_rest_is_refused() {
        let quota = Quota {
            pins_max: 2,
            ..Quota::UNBOUNDED
        };
        let mut known = KnownPins {
            to_go: [mailbox(1)].into(),
            ..KnownPins::default()
        };
        let mut held = HeldInAll {
            pins: 2,
            ..HeldInAll::default()
        };
        let mut plan = PinPlan::default();
        let pinned: Vec<_> = (3..=6)
            .map(|number| plan.pin(&mut known, &mut held, (mailbox(number), NOW), &quota))
            .collect();
        assert_eq!(pinned, [true, false, false, false]);
        let kept: Vec<_> = plan.changed.values().flatten().collect();
        assert_eq!((kept.len(), held.pins, plan.evicted), (1, 2, 1));
        assert_eq!(plan.changed[&mailbox(1)], None);
        plan.unpin(&known, &mut held, &mailbox(3));
        plan.unpin(&known, &mut held, &mailbox(3));
        assert_eq!(held.pins, 1);
    }
}
