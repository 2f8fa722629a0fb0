//! The delivery lane: pages of the mailbox, one blob after the other.
//!
//! The store is the only source: a wake says "look", and looking is reading the next page after the
//! cursor. At most one page is in memory. The session joins the hub before the first look, so
//! nothing is missed between the two.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::hub::Wakes;
use crate::ids::MailboxHash;
use crate::service::{BacklogCursor, OrderKey, Service, StoreError, StoredBlob, View};

/// Rest after a page could not be read. The client sees a pause, not an error: its blobs are kept.
const RETRY: Duration = Duration::from_secs(1);

/// A read that goes on by itself: were it polled by its session only, a session that is stuck in a
/// write would keep one of the store's few connections with it. Dropping it ends it.
type Reading = AbortOnDropHandle<Result<Turn, StoreError>>;

/// Where a feed stands.
#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// In the order of arrival.
    After(OrderKey),
    /// In what had waited for a device when it connected, which comes by version.
    Backlog(BacklogCursor),
}

/// A page, and where the next one begins.
struct Turn {
    blobs: Vec<StoredBlob>,
    next: Cursor,
    more: bool,
}

/// Blobs of one opened mailbox, in order, as long as the session lives.
pub struct Feed {
    service: Arc<Service>,
    mailbox: MailboxHash,
    view: View,
    wakes: Arc<Wakes>,
    cursor: Cursor,
    page: VecDeque<StoredBlob>,
    step: Step,
    /// Everything that had waited when the session began has been handed out.
    is_caught_up: bool,
}

enum Step {
    /// The mailbox may have more after the cursor.
    Look,
    /// A page is being read.
    Reading(Reading),
    /// Nothing more until a wake.
    Idle,
    /// A page could not be read; look again after a rest.
    Resting(Pin<Box<Sleep>>),
}

impl Feed {
    /// A feed from the first blob on. The caller has joined the hub with `wakes`.
    pub fn new(service: Arc<Service>, mailbox: MailboxHash, view: View, wakes: Arc<Wakes>) -> Self {
        Self {
            service,
            mailbox,
            view,
            wakes,
            cursor: Cursor::After(OrderKey::START),
            page: VecDeque::new(),
            step: Step::Look,
            is_caught_up: false,
        }
    }

    /// Whether everything that had waited when the session began has been handed out.
    pub fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// As [`Feed::new`] for the messages of a device: what waits comes by version, what comes later
    /// as it arrives.
    pub fn of_device(service: Arc<Service>, mailbox: MailboxHash, wakes: Arc<Wakes>) -> Self {
        let feed = Self::new(service, mailbox, View::DeviceSync, wakes);
        Self {
            cursor: Cursor::Backlog(BacklogCursor::START),
            ..feed
        }
    }

    /// The next blob; pending until there is one.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<StoredBlob> {
        loop {
            if let Some(blob) = self.next_of_page() {
                return Poll::Ready(blob);
            }
            self.step = match &mut self.step {
                Step::Look => Step::Reading(self.read()),
                Step::Reading(reading) => match ready!(Pin::new(reading).poll(context)) {
                    Ok(Ok(page)) => self.turn(page),
                    failed => {
                        let error = failed.map(|page| page.err());
                        tracing::warn!(?error, "can not read a page of a mailbox; trying again");
                        Step::Resting(Box::pin(tokio::time::sleep(RETRY)))
                    }
                },
                Step::Idle => {
                    self.is_caught_up = true;
                    let _mailboxes: HashSet<_> = ready!(self.wakes.poll_take(context));
                    Step::Look
                }
                Step::Resting(rest) => {
                    ready!(rest.as_mut().poll(context));
                    Step::Look
                }
            };
        }
    }

    /// What is still alive: a slow client may take a page for longer than its blobs live.
    fn next_of_page(&mut self) -> Option<StoredBlob> {
        let now = self.service.now();
        while let Some(blob) = self.page.pop_front() {
            if blob.expires_at > now {
                return Some(blob);
            }
        }
        None
    }

    fn read(&self) -> Reading {
        let (service, mailbox, view) = (Arc::clone(&self.service), self.mailbox, self.view);
        match self.cursor {
            Cursor::After(after) => spawned(async move {
                let page = service.page(mailbox, view, after).await?;
                Ok(Turn {
                    blobs: page.blobs,
                    next: Cursor::After(page.next),
                    more: page.more,
                })
            }),
            Cursor::Backlog(after) => spawned(async move {
                let page = service.device_backlog(mailbox, after).await?;
                let next = match page.more {
                    true => Cursor::Backlog(page.next),
                    false => Cursor::After(page.next.up_to),
                };
                // After the backlog something may have come already.
                Ok(Turn {
                    blobs: page.blobs,
                    next,
                    more: true,
                })
            }),
        }
    }

    fn turn(&mut self, turn: Turn) -> Step {
        self.cursor = turn.next;
        self.page = turn.blobs.into();
        // A wake that came while this page was read is still marked, and is taken when idle.
        if turn.more { Step::Look } else { Step::Idle }
    }
}

fn spawned(reading: impl Future<Output = Result<Turn, StoreError>> + Send + 'static) -> Reading {
    AbortOnDropHandle::new(tokio::spawn(reading))
}
