//! Which signed handshakes have been used, so that a recorded one opens nothing a second time.
//!
//! A nonce is burnt only after its signature was found good: otherwise a stranger could burn the
//! nonces of others. None is forgotten before its time, nor by a clock that is not to be trusted; when
//! too many are remembered, signed handshakes are refused until there is room.

use std::time::Duration;

use foldhash::HashMap;

use crate::clock::Timestamp;
use crate::store::model::Burnt;

/// How long a nonce is remembered: a signature is good for 60 s before and after its time, counted in
/// whole seconds, so up to 121 s; and the clock may be set back by a minute without another look.
pub(super) const NONCE_REMEMBERED: Duration = Duration::from_secs(182);

/// Nonces remembered, at the most: 90 MB at the bound, which takes 5,500 good signatures a second
/// for three minutes.
pub(super) const NONCES_MAX: u64 = 1_000_000;

/// What an engine answers about nonces.
#[derive(Debug, Default, Clone)]
pub struct KnownNonces {
    /// When each of those that were asked for was burnt, if it was.
    pub burnt: HashMap<[u8; 32], Timestamp>,
    /// How many are remembered.
    pub count: u64,
}

/// Whether the time of a nonce that was burnt at `burnt_at` was over by `expired_by`.
pub fn is_nonce_over(burnt_at: Timestamp, expired_by: Timestamp) -> bool {
    expired_by.since(burnt_at) >= NONCE_REMEMBERED
}

/// What a transaction does to nonces.
#[derive(Debug, Default)]
pub struct NoncePlan {
    /// Those that are burnt now.
    pub burnt: HashMap<[u8; 32], Timestamp>,
}

impl NoncePlan {
    pub(super) fn burn(
        &mut self,
        known: &KnownNonces,
        nonce: &[u8; 32],
        (expired_by, now): (Timestamp, Timestamp),
    ) -> Burnt {
        let before = self.burnt.get(nonce).or_else(|| known.burnt.get(nonce));
        if before.is_some_and(|at| !is_nonce_over(*at, expired_by)) {
            return Burnt::Used;
        }
        if known.count + self.burnt.len() as u64 >= NONCES_MAX {
            return Burnt::Full;
        }
        self.burnt.insert(*nonce, now);
        Burnt::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_within_its_time() {
        let now = Timestamp::from_millis(1_000_000);
        let mut known = KnownNonces::default();
        let burn = |known: &KnownNonces, plan: &mut NoncePlan, number: u8, now| {
            plan.burn(known, &[number; 32], (now, now))
        };
        let mut plan = NoncePlan::default();
        assert_eq!(burn(&known, &mut plan, 1, now), Burnt::First);
        assert_eq!(burn(&known, &mut plan, 1, now), Burnt::Used);
        assert_eq!(burn(&known, &mut plan, 2, now), Burnt::First);
        known.burnt.extend(plan.burnt);
        let almost = now.plus(NONCE_REMEMBERED - Duration::from_millis(1));
        let mut plan = NoncePlan::default();
        assert_eq!(burn(&known, &mut plan, 1, almost), Burnt::Used);
        let over = now.plus(NONCE_REMEMBERED);
        assert_eq!(burn(&known, &mut plan, 1, over), Burnt::First);
    }

    #[test]
    fn a_clock_that_is_not_trusted_makes_no_nonce_good_again() {
        let (burnt_at, untrusted) = (Timestamp::from_millis(1_000_000), Timestamp::default());
        let known = KnownNonces {
            burnt: [([1; 32], burnt_at)].into_iter().collect(),
            count: 1,
        };
        let ahead = burnt_at.plus(2 * NONCE_REMEMBERED);
        let burn = |times| NoncePlan::default().burn(&known, &[1; 32], times);
        assert_eq!(burn((untrusted, ahead)), Burnt::Used);
        assert_eq!(burn((ahead, ahead)), Burnt::First);
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_nothing_early() {
        let now = Timestamp::from_millis(1_000_000);
        let known = KnownNonces {
            burnt: [([1; 32], now)].into_iter().collect(),
            count: NONCES_MAX,
        };
        let mut plan = NoncePlan::default();
        assert_eq!(plan.burn(&known, &[2; 32], (now, now)), Burnt::Full);
        assert_eq!(plan.burn(&known, &[1; 32], (now, now)), Burnt::Used);
    }
}
