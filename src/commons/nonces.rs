//! Which signed handshakes have been used, so that a recorded one opens nothing a second time.
//!
//! A nonce is burnt only after its signature was found good: otherwise a stranger could burn the
//! nonces of others. None is forgotten before its time, nor by a clock that is not steady; when the
//! memory is full, signed handshakes are refused until there is room.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::NonceRefused;
use crate::clock::Timestamp;

/// How long a nonce is remembered: a signature is good for 60 s before and after its time, counted in
/// whole seconds, so up to 121 s; and the clock may be set back by a minute without another look.
const REMEMBERED: Duration = Duration::from_secs(182);

/// Nonces remembered, at the most. Two copies of 32 bytes and the set's overhead: 90 MB at the
/// bound, which takes 5,500 good signatures a second for three minutes.
const NONCES_MAX: usize = 1_000_000;

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    /// Nothing awaits inside.
    burnt: Mutex<Burnt>,
}

#[derive(Debug, Default)]
struct Burnt {
    nonces: HashSet<[u8; 32]>,
    /// In the order in which they are forgotten.
    order: VecDeque<(Timestamp, [u8; 32])>,
}

impl Nonces {
    /// Burns a nonce whose signature is good. Those whose time was over by `expired_by` are forgotten.
    pub(super) fn burn(
        &self,
        nonce: [u8; 32],
        expired_by: Timestamp,
        now: Timestamp,
    ) -> Result<(), NonceRefused> {
        let mut burnt = self.burnt.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, oldest)) = burnt.order.front().copied()
            && expired_by.since(at) >= REMEMBERED
        {
            burnt.order.pop_front();
            burnt.nonces.remove(&oldest);
        }
        if burnt.nonces.contains(&nonce) {
            return Err(NonceRefused::Used);
        }
        if burnt.nonces.len() >= NONCES_MAX {
            return Err(NonceRefused::Full);
        }
        burnt.nonces.insert(nonce);
        burnt.order.push_back((now, nonce));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(number: u64) -> [u8; 32] {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    /// Burns by a clock that is trusted.
    fn burn(nonces: &Nonces, nonce: [u8; 32], now: Timestamp) -> Result<(), NonceRefused> {
        nonces.burn(nonce, now, now)
    }

    #[test]
    fn a_nonce_is_good_once_within_its_time() {
        let nonces = Nonces::default();
        let now = Timestamp::from_millis(1_000_000);
        assert_eq!(burn(&nonces, nonce(1), now), Ok(()));
        assert_eq!(burn(&nonces, nonce(1), now), Err(NonceRefused::Used));
        assert_eq!(burn(&nonces, nonce(2), now), Ok(()));
        let almost = now.plus(REMEMBERED - Duration::from_millis(1));
        assert_eq!(burn(&nonces, nonce(1), almost), Err(NonceRefused::Used));
        assert_eq!(burn(&nonces, nonce(1), now.plus(REMEMBERED)), Ok(()));
    }

    /// Else a clock that jumps and is put right opens the door to who recorded a handshake.
    #[test]
    fn a_step_of_the_clock_makes_no_nonce_forgotten() {
        let nonces = Nonces::default();
        let (now, untrusted) = (Timestamp::from_millis(1_000_000), Timestamp::default());
        assert_eq!(burn(&nonces, nonce(1), now), Ok(()));
        let ahead = now.plus(10 * REMEMBERED);
        assert_eq!(nonces.burn(nonce(2), untrusted, ahead), Ok(()));
        assert_eq!(burn(&nonces, nonce(1), now), Err(NonceRefused::Used));
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_nothing_early() {
        let nonces = Nonces::default();
        let now = Timestamp::from_millis(1_000_000);
        for number in 0..NONCES_MAX as u64 {
            burn(&nonces, nonce(number), now).unwrap();
        }
        assert_eq!(burn(&nonces, nonce(u64::MAX), now), Err(NonceRefused::Full));
        assert_eq!(burn(&nonces, nonce(0), now), Err(NonceRefused::Used));
        let later = now.plus(REMEMBERED);
        assert_eq!(burn(&nonces, nonce(u64::MAX), later), Ok(()));
        assert_eq!(nonces.burnt.lock().unwrap().nonces.len(), 1);
    }
}
