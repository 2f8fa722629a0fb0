//! How long the oldest open transaction of the server has held deliveries back.
//!
//! A page ends before the keys of the oldest open transaction, whoever runs it (`keys`). The server does not tell
//! when that one got its number: it shows other roles' sessions only to members of `pg_read_all_stats`, and
//! `xact_start` is when a transaction began, not when it first wrote. So each heartbeat notes up to which number
//! transactions have ended. The first note beyond the oldest open number was taken at most a heartbeat after
//! something with a larger number was committed, and has waited since.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Notes kept, 24 bytes each: for an hour and more one each second. Then every other one is dropped, and notes are
/// taken half as often, so transactions of days are known to a minute or two.
const NOTES_MAX: usize = 4_096;

/// What heartbeats have noted.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    /// When all transactions that had ended were below this number, the oldest note first.
    notes: VecDeque<(Instant, i64)>,
    /// Time between two notes; zero while there are few.
    every: Duration,
}

impl HeldBack {
    /// Notes a snapshot: all transactions that have ended are below `next`, and `oldest` is the oldest open one, or
    /// equal to `next` when none holds anything back. Returns for how long that one has been seen to do so.
    pub(super) fn note(&mut self, now: Instant, oldest: i64, next: i64) -> Duration {
        if self.notes.back().is_some_and(|(_, last)| *last > next) {
            // Another database, restored or a standby's: nothing that was noted is about its numbers.
            self.notes.clear();
        }
        let last = self.notes.back();
        if last.is_none_or(|(at, _)| now.duration_since(*at) >= self.every) {
            self.notes.push_back((now, next));
        }
        while self.notes.front().is_some_and(|(_, next)| *next <= oldest) {
            self.notes.pop_front();
        }
        let first = self.notes.front();
        let age = first.map_or(Duration::ZERO, |(at, _)| now.duration_since(*at));
        self.thin_out(age);
        age
    }

    /// Keeps the notes bounded; they go back for `age`.
    fn thin_out(&mut self, age: Duration) {
        if self.notes.len() < NOTES_MAX / 8 {
            self.every = Duration::ZERO;
        } else if self.notes.len() >= NOTES_MAX {
            let mut at = 0;
            self.notes.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every = age / (NOTES_MAX as u32 / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_age_is_that_of_the_oldest_open_transaction() {
        let (mut held_back, begun) = (HeldBack::default(), Instant::now());
        let mut note = |secs, oldest, next| {
            let now = begun + SECOND * secs;
            held_back.note(now, oldest, next).as_secs()
        };
        assert_eq!(note(0, 10, 10), 0, "none is open");
        assert_eq!(note(1, 15, 20), 0, "15 was not there a second ago");
        assert_eq!(note(2, 15, 30), 1);
        assert_eq!(note(3, 15, 40), 2);
        // 15 has ended; 35 was given out between the second second and the third.
        assert_eq!(note(4, 35, 50), 1);
        assert_eq!(note(5, 60, 60), 0);
        // The numbers of a database that was restored are smaller.
        assert_eq!(note(6, 3, 5), 0);
        assert_eq!(note(8, 3, 7), 2);
    }

    #[test]
    fn a_transaction_of_days_is_known_in_bounded_memory() {
        let (mut held_back, begun) = (HeldBack::default(), Instant::now());
        for secs in 0..200_000 {
            let age = held_back.note(begun + SECOND * secs, 1, 2 + i64::from(secs));
            assert_eq!(age.as_secs(), u64::from(secs));
            assert!(held_back.notes.len() < NOTES_MAX);
        }
        // One that began a day later is known to a minute or two.
        let age = held_back.note(begun + SECOND * 200_000, 100_000, 200_002);
        let off = age.as_secs().abs_diff(100_000);
        assert!(off < 120, "{off}");
    }
}
