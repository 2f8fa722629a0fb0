//! Acknowledgements that wait to be sent, many in one frame.

use std::collections::VecDeque;

use super::ClientError;
use super::blob::Item;
use super::request::{Ask, Waiter};
use crate::ids::MailboxId;
use crate::protocol::v2::Request;

/// In the order given. Bounded by the room that each waiter has taken.
#[derive(Default)]
pub(super) struct Acknowledgements {
    waiting: VecDeque<(Item, Waiter)>,
}

impl Acknowledgements {
    pub(super) fn push(&mut self, item: Item, waiter: Waiter) {
        self.waiting.push_back((item, waiter));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next request, for so many items at the most. Who acknowledges in a mailbox that is not open is
    /// told so: it would spoil the others' frame.
    pub(super) fn gather(
        &mut self,
        count_max: usize,
        is_open: impl Fn(&MailboxId) -> bool,
    ) -> Option<(Ask, Vec<Waiter>)> {
        let (mut items, mut waiters) = (Vec::new(), Vec::new());
        while items.len() < count_max {
            let Some((item, waiter)) = self.waiting.pop_front() else {
                break;
            };
            if is_open(&item.mailbox) {
                items.push((item.mailbox, item.id));
                waiters.push(waiter);
            } else {
                waiter.tell(Err(ClientError::NotOpen));
            }
        }
        let ask = Ask::Request(Request::Acknowledge(items));
        (!waiters.is_empty()).then_some((ask, waiters))
    }

    /// These were asked and not answered; they go before the others.
    pub(super) fn give_back(&mut self, asked: Vec<(Item, Waiter)>) {
        for (item, waiter) in asked.into_iter().rev() {
            self.waiting.push_front((item, waiter));
        }
    }

    /// Tells all who wait why nothing comes of it.
    pub(super) fn end(&mut self, why: &ClientError) {
        for (_, waiter) in self.waiting.drain(..) {
            waiter.tell(Err(why.clone()));
        }
    }
}
