//! The blobs that left a short time ago, so that a late repeat of one is a duplicate.
//!
//! For engines that keep them in memory: 64 bytes each and a table of where they stand. The oldest is
//! forgotten first, when its time is over or when there are too many. SQLite's table `departures`
//! holds the same under the same numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use super::plan::Departure;
use super::plan::known::{Departed, Name};
use super::tally::as_float;
use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};
use crate::metrics::Metrics;

/// A departure under the first 64 bits of its mailbox: the table has no more of it. The hash is keyed,
/// so nobody can aim at a collision.
#[derive(Debug, Clone, Copy)]
struct Place {
    number: i64,
    mailbox64: i64,
    id: BlobId,
    departed: Departed,
}

/// All departures that are remembered, by age.
#[derive(Debug)]
pub struct Departures {
    span: Duration,
    /// Zero means no bound.
    count_max: u64,
    by_age: VecDeque<Place>,
    /// From mailbox and id, mixed, to the number counted from the first one ever in `by_age`.
    places: HashMap<u64, u64>,
    /// How many have left the front of `by_age`.
    forgotten: u64,
    next_number: i64,
    /// The numbers up to this one are forgotten and may be deleted from the table.
    forgotten_to: i64,
    /// The table has no smaller number than this one.
    table_from: i64,
    metrics: Arc<Metrics>,
}

impl Departures {
    /// Remembers each for `span`, and at most `count_max` of them; zero means no bound.
    pub fn new(span: Duration, count_max: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            span,
            count_max,
            by_age: VecDeque::new(),
            places: HashMap::default(),
            forgotten: 0,
            next_number: 1,
            forgotten_to: 0,
            table_from: 1,
            metrics,
        }
    }

    /// Says that the table begins with this number.
    pub(super) fn set_table_from(&mut self, number: i64) {
        self.table_from = number;
        self.next_number = self.next_number.max(number);
        self.forgotten_to = self.forgotten_to.max(number - 1);
    }

    /// Forgets what comes before this number without having read it.
    pub(super) fn skip_to(&mut self, number: i64) {
        self.next_number = self.next_number.max(number);
        self.forgotten_to = self.forgotten_to.max(number - 1);
    }

    /// Remembers a row of the table; rows come in the order of their numbers.
    pub(super) fn load(&mut self, number: i64, (mailbox64, id): (i64, BlobId), departed: Departed) {
        let place = self.forgotten + self.by_age.len() as u64;
        self.places.insert(mix(mailbox64, &id), place);
        self.by_age.push_back(Place {
            number,
            mailbox64,
            id,
            departed,
        });
        self.next_number = number + 1;
    }

    /// The number that the next departure gets.
    pub(super) fn next_number(&self) -> i64 {
        self.next_number
    }

    /// Remembers what has left in a transaction that is durable now.
    pub fn remember(&mut self, departures: &[Departure]) {
        for departure in departures {
            let name = (departure.mailbox.prefix64(), departure.id);
            self.load(self.next_number, name, departure.departed);
        }
    }

    /// The departure of this blob, if it has not been forgotten.
    fn find(&self, mailbox: &MailboxHash, id: &BlobId) -> Option<Departed> {
        let mailbox64 = mailbox.prefix64();
        let place = self.places.get(&mix(mailbox64, id))?;
        let index = usize::try_from(place.checked_sub(self.forgotten)?).ok()?;
        let found = self.by_age.get(index)?;
        let is_it = found.mailbox64 == mailbox64 && found.id == *id;
        is_it.then_some(found.departed)
    }

    /// What is remembered of those of these blobs that left.
    pub fn find_all(&self, names: &[Name]) -> HashMap<Name, Departed> {
        let found = names.iter();
        found
            .filter_map(|name| Some((*name, self.find(&name.0, &name.1)?)))
            .collect()
    }

    /// Forgets what was past its time by `forget_by` and what is too much, and counts it. Not every
    /// batch tells the time: `now` may be zero.
    pub fn forget(&mut self, forget_by: Timestamp, now: Timestamp) {
        let early = self.drop_old(forget_by, now);
        self.metrics.dedup_forgotten_total.increment(early);
        self.show(now);
    }

    /// Shows in the metrics what is remembered.
    pub(super) fn show(&self, now: Timestamp) {
        let remembered = as_float(self.by_age.len() as u64);
        self.metrics.dedup_remembered.set(remembered);
        if now > Timestamp::default() {
            let reach = self.reach(now).as_secs_f64();
            self.metrics.dedup_memory_seconds.set(reach);
        }
    }

    /// Returns how many went before their time, which is over by `now`.
    fn drop_old(&mut self, forget_by: Timestamp, now: Timestamp) -> u64 {
        let mut early = 0;
        while let Some(oldest) = self.by_age.front() {
            let is_over = self.is_over(&oldest.departed, forget_by);
            let is_too_much = self.count_max != 0 && self.by_age.len() as u64 > self.count_max;
            if !is_over && !is_too_much {
                break;
            }
            early += u64::from(!self.is_over(&oldest.departed, now));
            self.forgotten_to = oldest.number;
            let mixed = mix(oldest.mailbox64, &oldest.id);
            if self.places.get(&mixed) == Some(&self.forgotten) {
                self.places.remove(&mixed);
            }
            self.by_age.pop_front();
            self.forgotten += 1;
        }
        early
    }

    /// Up to which number the table may be trimmed by at most `rows_max` rows, if at all.
    pub(super) fn trim_to(&self, rows_max: usize) -> Option<i64> {
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let to = self.forgotten_to.min(self.table_from + rows_max - 1);
        (to >= self.table_from && rows_max > 0).then_some(to)
    }

    /// Says that the table was trimmed up to this number.
    pub(super) fn trimmed(&mut self, to: i64) {
        self.table_from = to + 1;
    }

    /// How far back the memory reaches.
    fn reach(&self, now: Timestamp) -> Duration {
        self.by_age
            .front()
            .map_or(Duration::ZERO, |oldest| now.since(oldest.departed.left_at))
    }

    fn is_over(&self, departed: &Departed, now: Timestamp) -> bool {
        departed.left_at.plus(self.span) <= now
    }
}

/// One number for mailbox and id. The first is a keyed hash, so nobody can aim at a collision
/// across mailboxes; one within a mailbox makes its own sender's older blob forgotten, no more.
fn mix(mailbox64: i64, id: &BlobId) -> u64 {
    let id = u128::from_be_bytes(*id.as_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the id")]
    let (high, low) = ((id >> 64) as u64, id as u64);
    mailbox64
        .cast_unsigned()
        .wrapping_add(high.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .rotate_left(29)
        .wrapping_add(low.wrapping_mul(0xC2B2_AE3D_27D4_EB4F))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAILBOX: MailboxHash = MailboxHash::from_bytes([1; 32]);

    fn remembering(span: Duration, count_max: u64) -> Departures {
        Departures::new(span, count_max, Arc::new(Metrics::new()))
    }

    fn departed(id: u8, left_at: u64) -> Departed {
        Departed {
            left_at: Timestamp::from_millis(left_at),
            checksum: [id; 16],
            expires_at: Timestamp::from_millis(99),
        }
    }

    fn departure(id: u8, left_at: u64) -> Departure {
        Departure {
            mailbox: MAILBOX,
            id: BlobId::from_bytes([id; 16]),
            departed: departed(id, left_at),
        }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn found(departures: &Departures, id: u8) -> Option<u64> {
        let found = departures.find(&MAILBOX, &BlobId::from_bytes([id; 16]));
        found.map(|departed| departed.left_at.millis())
    }

    #[test]
    fn a_departure_is_remembered_for_its_span() {
        let mut departures = remembering(Duration::from_millis(100), 0);
        departures.remember(&[departure(1, 1000), departure(2, 1050)]);
        assert_eq!(departures.drop_old(at(1099), at(1099)), 0);
        assert_eq!(found(&departures, 1), Some(1000));
        assert_eq!(departures.drop_old(at(1100), at(1100)), 0);
        assert_eq!(found(&departures, 1), None);
        assert_eq!(found(&departures, 2), Some(1050));
        assert_eq!(found(&departures, 3), None);
        assert_eq!(departures.by_age.len(), 1);
        assert_eq!(departures.reach(at(1100)), Duration::from_millis(50));
    }

    #[test]
    fn a_clock_that_is_not_trusted_makes_nothing_forgotten() {
        let mut departures = remembering(Duration::from_millis(100), 2);
        departures.remember(&[departure(1, 1000), departure(2, 1050)]);
        assert_eq!(departures.drop_old(at(0), at(9000)), 0);
        assert_eq!(found(&departures, 1), Some(1000));
        departures.remember(&[departure(3, 9000)]);
        assert_eq!(departures.drop_old(at(0), at(9000)), 0, "its time was over");
        assert_eq!(departures.by_age.len(), 2);
    }

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many() {
        let mut departures = remembering(Duration::from_secs(100), 2);
        departures.remember(&[departure(1, 1), departure(2, 2), departure(3, 3)]);
        assert_eq!(departures.drop_old(at(3), at(3)), 1);
        assert_eq!(found(&departures, 1), None);
        assert!(found(&departures, 2).is_some() && found(&departures, 3).is_some());
    }

    #[test]
    fn a_second_departure_of_the_same_id_outlives_the_first() {
        let mut departures = remembering(Duration::from_millis(100), 0);
        departures.remember(&[departure(1, 1000), departure(1, 1080)]);
        departures.drop_old(at(1100), at(1100));
        assert_eq!(found(&departures, 1), Some(1080));
    }

    #[test]
    fn the_table_is_trimmed_in_slices_up_to_what_is_forgotten() {
        let mut departures = remembering(Duration::from_millis(100), 0);
        departures.set_table_from(5);
        for number in 5..10 {
            let name = (1, BlobId::from_bytes([number as u8; 16]));
            departures.load(number, name, departed(number as u8, number as u64));
        }
        assert_eq!(departures.trim_to(2), None);
        departures.drop_old(at(107), at(107));
        assert_eq!(departures.trim_to(2), Some(6));
        departures.trimmed(6);
        assert_eq!(departures.trim_to(2), Some(7));
        departures.trimmed(7);
        assert_eq!(departures.trim_to(2), None);
        assert_eq!(departures.next_number(), 10);
    }
}
