//! Memory of messages that have begun and not come whole, over all connections.
//!
//! It is charged by what has come, in steps, and not by what a header announces: a few bytes must not
//! take room from anybody. Each address has a share of it, as of connections (`holdings`). Whoever gets
//! no step waits, and holds meanwhile what it has; so that no two wait for each other for ever, the
//! oldest message of a network may exceed the network's share, and the oldest of all exceeds the bound.
//! Each then ends within its own time, and another one is the oldest.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::address::{Address, Network, Width};
use super::holdings::{Denied, Holdings};
use crate::metrics::{Metrics, Shared};

/// Room is taken in steps of this.
pub const STEP_BYTES: u64 = 64 * 1024;

/// One address may hold one part in this of the bound: 32 of 256 MiB, which are 16 of the largest
/// messages.
const SHARE: u64 = 8;

/// The bound, shared by all connections. Clones are the same one.
#[derive(Clone)]
pub struct Unfinished {
    /// Nothing awaits inside.
    pool: Arc<Mutex<Pool>>,
    metrics: Arc<Metrics>,
}

struct Pool {
    bytes: Holdings,
    next: u64,
    /// Messages that hold or want room, by age, and again by the widest network that they come from.
    messages: BTreeSet<u64>,
    by_network: HashMap<Option<Network>, BTreeSet<u64>>,
}

/// The room of one message; given back by dropping it.
pub struct Room {
    unfinished: Unfinished,
    address: Address,
    number: u64,
    bytes: u64,
}

impl Unfinished {
    /// At most `bytes_max` (`RELAY_MAX_UNFINISHED_BYTES`) and one message; zero for no limit.
    pub fn new(bytes_max: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            pool: Arc::new(Mutex::new(Pool {
                bytes: Holdings::new(bytes_max, bytes_max / SHARE),
                next: 0,
                messages: BTreeSet::new(),
                by_network: HashMap::new(),
            })),
            metrics,
        }
    }

    /// A message of `address` that is about to need room. It has none yet.
    pub fn begin(&self, address: Address) -> Room {
        let mut pool = self.pool();
        let number = pool.next;
        pool.next += 1;
        pool.messages.insert(number);
        let network = widest(address);
        pool.by_network.entry(network).or_default().insert(number);
        drop(pool);
        Room {
            unfinished: self.clone(),
            address,
            number,
            bytes: 0,
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn take(&mut self, room: &Room) -> Result<(), Denied> {
        let Err(denied) = self.bytes.take(room.address, STEP_BYTES) else {
            return Ok(());
        };
        let is_oldest = |numbers: &BTreeSet<u64>| numbers.first() == Some(&room.number);
        let of_network = self.by_network.get(&widest(room.address));
        let may_exceed_share = denied != Denied::Empty && of_network.is_some_and(is_oldest);
        if may_exceed_share || is_oldest(&self.messages) {
            self.bytes.take_over(room.address, STEP_BYTES);
            return Ok(());
        }
        Err(denied)
    }

    fn end(&mut self, room: &Room) {
        self.bytes.give_back(room.address, room.bytes);
        self.messages.remove(&room.number);
        let network = widest(room.address);
        if let Some(numbers) = self.by_network.get_mut(&network) {
            numbers.remove(&room.number);
            if numbers.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }
}

impl Room {
    /// So many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes one step more, or nothing and says why.
    pub fn grow(&mut self) -> Result<(), Denied> {
        self.unfinished.pool().take(self)?;
        self.bytes += STEP_BYTES;
        let metrics = &self.unfinished.metrics;
        metrics.unfinished_bytes.increment(STEP_BYTES as f64);
        Ok(())
    }

    /// Counts that a message waits because of this.
    pub fn count_wait(&self, denied: Denied) {
        let metrics = &self.unfinished.metrics;
        metrics.unfinished_waits_total.increment(1);
        let refusals = metrics.share_refusals(Shared::Unfinished, denied.why());
        refusals.increment(1);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.unfinished.pool().end(self);
        let metrics = &self.unfinished.metrics;
        metrics.unfinished_bytes.decrement(self.bytes as f64);
    }
}

/// The widest network around an address that is counted.
fn widest(address: Address) -> Option<Network> {
    address.within(Width::Neighbours)
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unfinished")
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfinished(steps: u64) -> Unfinished {
        Unfinished::new(steps * STEP_BYTES, Arc::new(Metrics::new()))
    }

    fn of(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    fn grown(room: &mut Room) -> u64 {
        while room.bytes() < 1_000 * STEP_BYTES && room.grow().is_ok() {}
        room.bytes() / STEP_BYTES
    }

    #[test]
    fn one_address_takes_its_share_and_its_oldest_message_goes_on() {
        let unfinished = unfinished(80);
        let home = of("192.0.2.1");
        let mut oldest = unfinished.begin(home);
        let mut others: Vec<_> = (0..20).map(|_| unfinished.begin(home)).collect();
        let taken: u64 = others.iter_mut().map(grown).sum();
        assert_eq!(taken, 10, "an eighth");
        oldest.grow().unwrap();
        oldest.grow().unwrap();
        assert_eq!(others[0].grow(), Err(Denied::Share(Width::Address)));
        let mut stranger = unfinished.begin(of("198.51.100.1"));
        (0..10).for_each(|_| stranger.grow().unwrap());
        drop((oldest, stranger));
        // The next one is the oldest now.
        others[0].grow().unwrap();
        drop(others);
        let pool = unfinished.pool();
        assert_eq!(pool.bytes.held(), 0);
        assert!(pool.messages.is_empty() && pool.by_network.is_empty());
    }

    #[test]
    fn neighbours_have_no_oldest_each() {
        let unfinished = unfinished(80);
        let mut neighbours: Vec<_> = (0..200)
            .map(|n| unfinished.begin(of(&format!("2001:db8:0:{n:x}::1"))))
            .collect();
        let taken: u64 = neighbours.iter_mut().skip(1).map(grown).sum();
        // A /56 has twice a share.
        assert_eq!(taken, 20);
        assert!(neighbours[0].grow().is_ok() && neighbours[1].grow().is_err());
    }

    #[test]
    fn when_all_is_taken_the_oldest_of_all_goes_on_and_the_bound_holds_for_the_rest() {
        let unfinished = unfinished(16);
        let mut messages: Vec<_> = (0..40)
            .map(|n| unfinished.begin(of(&format!("192.0.{n}.1"))))
            .collect();
        while messages.iter_mut().skip(1).any(|room| room.grow().is_ok()) {}
        let held = unfinished.pool().bytes.held() / STEP_BYTES;
        assert_eq!(held, 16, "each is the oldest of its network");
        assert_eq!(messages[1].grow(), Err(Denied::Empty));
        assert_eq!(grown(&mut messages[0]), 1_000);
    }

    #[test]
    fn without_a_bound_everybody_gets_what_it_asks() {
        let unfinished = unfinished(0);
        let mut room = unfinished.begin(of("192.0.2.1"));
        assert_eq!(grown(&mut room), 1_000);
    }
}
