//! What was delivered on this connection and not yet acknowledged on it.
//!
//! v1 deliveries are paced by the socket alone, so here the window bounds only memory: it tells
//! which acknowledgements are free of charge and whether a draining session still waits for some.

use std::collections::{HashSet, VecDeque};

use crate::ids::BlobId;

/// Blobs remembered as in flight. At 48 bytes each a session that never acknowledges costs 768 KiB
/// at the most; the oldest are forgotten first, and acknowledging those is charged like a request.
const IN_FLIGHT_MAX: usize = 16_384;

/// Blobs in flight.
#[derive(Debug, Default)]
pub struct InFlight {
    ids: HashSet<BlobId>,
    /// In the order of delivery; may still hold ids that were acknowledged.
    order: VecDeque<BlobId>,
}

impl InFlight {
    /// A blob was written to the socket.
    pub fn delivered(&mut self, id: BlobId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        while self.order.len() > IN_FLIGHT_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }

    /// The client has it. Returns whether it was in flight here.
    pub fn acknowledged(&mut self, id: &BlobId) -> bool {
        let was_in_flight = self.ids.remove(id);
        while self
            .order
            .front()
            .is_some_and(|oldest| !self.ids.contains(oldest))
        {
            self.order.pop_front();
        }
        was_in_flight
    }

    /// Whether everything that was delivered has been acknowledged.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> BlobId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        BlobId::from_bytes(bytes)
    }

    #[test]
    fn only_what_was_delivered_here_is_in_flight_and_only_once() {
        let mut flight = InFlight::default();
        assert!(!flight.acknowledged(&id(1)));
        flight.delivered(id(1));
        flight.delivered(id(1));
        assert!(flight.acknowledged(&id(1)));
        assert!(!flight.acknowledged(&id(1)));
        assert!(flight.is_empty() && flight.order.is_empty());
    }

    #[test]
    fn a_client_that_never_acknowledges_costs_a_bounded_memory() {
        let mut flight = InFlight::default();
        for number in 0..3 * IN_FLIGHT_MAX as u32 {
            flight.delivered(id(number));
        }
        assert_eq!(
            (flight.ids.len(), flight.order.len()),
            (IN_FLIGHT_MAX, IN_FLIGHT_MAX)
        );
        assert!(!flight.acknowledged(&id(0)));
        assert!(flight.acknowledged(&id(3 * IN_FLIGHT_MAX as u32 - 1)));
    }
}
