//! The delivery lane: pages of the open mailboxes, one blob after the other.
//!
//! The store is the only source: a wake says "look", and looking is reading the next page after the
//! cursor. Mailboxes take turns by the page, so that a full one does not keep the others waiting. At
//! most one page is in memory. The session joins the hub before the first look, so nothing is
//! missed between the two.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use super::mailboxes::{Cursor, Mailboxes, Turn};
use crate::hub::Wakes;
use crate::ids::MailboxHash;
use crate::service::{Service, StoreError, StoredBlob};

/// Rest after a page could not be read. The client sees a pause, not an error: its blobs are kept.
const RETRY: Duration = Duration::from_secs(1);

/// A read that goes on by itself: were it polled by its session only, a session that is stuck in a
/// write would keep one of the store's few connections with it. Dropping it ends it.
type Reading = AbortOnDropHandle<Result<Page, StoreError>>;

/// A page, and where the next one begins.
struct Page {
    blobs: Vec<StoredBlob>,
    next: Cursor,
    more: bool,
}

/// Blobs of the open mailboxes, of each in order, as long as the session lives.
pub struct Feed {
    service: Arc<Service>,
    mailboxes: Arc<Mailboxes>,
    wakes: Arc<Wakes>,
    page: VecDeque<StoredBlob>,
    /// Whose page that is.
    turn: Option<Turn>,
    step: Step,
    /// There was a moment without anything to hand out.
    is_caught_up: bool,
}

enum Step {
    /// Whose turn is it?
    Look,
    /// A page is being read.
    Reading(Reading),
    /// Nothing more until a wake.
    Idle,
    /// A page could not be read; look again after a rest.
    Resting(Pin<Box<Sleep>>),
}

/// What a feed has.
#[derive(Debug)]
pub enum Fed {
    /// The next blob, of this mailbox.
    Blob(MailboxHash, StoredBlob),
    /// There is one, and the window does not admit it.
    Full,
}

impl Feed {
    /// A feed of these mailboxes. The caller joins the hub for each of them with `wakes`.
    pub fn new(service: Arc<Service>, mailboxes: Arc<Mailboxes>, wakes: Arc<Wakes>) -> Self {
        Self {
            service,
            mailboxes,
            wakes,
            page: VecDeque::new(),
            turn: None,
            step: Step::Look,
            is_caught_up: false,
        }
    }

    /// Whether everything that had waited has been handed out, at least once.
    pub fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// The next blob that `admits` lets go, by its bytes; pending until there is one.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        admits: impl Fn(u64) -> bool,
    ) -> Poll<Fed> {
        loop {
            if let Some(fed) = self.next_of_page(&admits) {
                return Poll::Ready(fed);
            }
            self.step = match &mut self.step {
                Step::Look => self.look(),
                Step::Reading(reading) => match ready!(Pin::new(reading).poll(context)) {
                    Ok(Ok(page)) => self.turned(page),
                    failed => {
                        let error = failed.map(|page| page.err());
                        tracing::warn!(?error, "can not read a page of a mailbox; trying again");
                        self.turn
                            .take()
                            .iter()
                            .for_each(|turn| self.mailboxes.put_back(turn));
                        Step::Resting(Box::pin(tokio::time::sleep(RETRY)))
                    }
                },
                Step::Idle => {
                    self.is_caught_up = true;
                    match self.wakes.poll_take(context) {
                        Poll::Ready(marked) => self.mailboxes.look_at(marked),
                        // One that has just been opened may have a backlog and no wake.
                        Poll::Pending if self.mailboxes.is_any_queued() => {}
                        Poll::Pending => return Poll::Pending,
                    }
                    Step::Look
                }
                Step::Resting(rest) => {
                    ready!(rest.as_mut().poll(context));
                    Step::Look
                }
            };
        }
    }

    /// What is still alive and whose mailbox is still open: a slow client may take a page for longer
    /// than its blobs live.
    fn next_of_page(&mut self, admits: &impl Fn(u64) -> bool) -> Option<Fed> {
        let turn = self.turn?;
        if !self.page.is_empty() && !self.mailboxes.is_current(&turn) {
            self.page.clear();
        }
        let now = self.service.now();
        while let Some(blob) = self.page.front() {
            if blob.expires_at > now && !admits(delivered_bytes(blob)) {
                return Some(Fed::Full);
            }
            if let Some(blob) = self.page.pop_front()
                && blob.expires_at > now
            {
                return Some(Fed::Blob(turn.mailbox, blob));
            }
        }
        if matches!(self.step, Step::Look) {
            self.mailboxes.finished(&turn);
        }
        None
    }

    fn look(&mut self) -> Step {
        self.turn = self.mailboxes.next_turn();
        let Some(turn) = self.turn else {
            return Step::Idle;
        };
        let service = Arc::clone(&self.service);
        Step::Reading(AbortOnDropHandle::new(tokio::spawn(read(service, turn))))
    }

    fn turned(&mut self, page: Page) -> Step {
        // A wake that came while this page was read is still marked, and is taken when idle.
        if let Some(turn) = &self.turn
            && self.mailboxes.turned(turn, page.next, page.more)
        {
            self.page = page.blobs.into();
        }
        Step::Look
    }
}

/// What a blob takes of the window: a receipt counts as one blob of 64 bytes.
pub fn delivered_bytes(blob: &StoredBlob) -> u64 {
    match blob.receipt() {
        Some(_) => 64,
        None => blob.body.len() as u64,
    }
}

async fn read(service: Arc<Service>, turn: Turn) -> Result<Page, StoreError> {
    match turn.cursor {
        Cursor::After(after) => {
            let page = service.page(turn.mailbox, turn.view, after).await?;
            Ok(Page {
                blobs: page.blobs,
                next: Cursor::After(page.next),
                more: page.more,
            })
        }
        Cursor::Backlog(after) => {
            let page = service.device_backlog(turn.mailbox, after).await?;
            let next = match page.more {
                true => Cursor::Backlog(page.next),
                false => Cursor::After(page.next.up_to),
            };
            // After the backlog something may have come already.
            Ok(Page {
                blobs: page.blobs,
                next,
                more: true,
            })
        }
    }
}
