//! The delivery lane: pages of the open mailboxes, one blob after the other.
//!
//! The store is the truth: a wake says "look", and looking is reading the next page after the cursor.
//! A blob that was just committed and follows the cursor directly is handed out from memory. Mailboxes take turns by the page, so that a full one does not keep the others waiting. At
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

use super::mailboxes::{Cursor, Hinted, Mailboxes, Turn};
use crate::clock::Timestamp;
use crate::hub::{Hint, Inbox, Woken};
use crate::ids::MailboxHash;
use crate::service::{More, Service, StoreError, StoredBlob};

/// Rest after a page could not be read. The client sees a pause, not an error: its blobs are kept.
const RETRY: Duration = Duration::from_secs(1);

/// How long a page may wait to be handed out, as it does for the window: what was taken back, replaced
/// or acknowledged elsewhere since it was read comes for so long at the most. A client that takes one
/// blob in so long a time costs a page for each.
const PAGE_FRESH: Duration = Duration::from_secs(10);

/// A read that goes on by itself: were it polled by its session only, a session that is stuck in a
/// write would keep one of the store's few connections with it. Dropping it ends it.
type Reading = AbortOnDropHandle<Result<Page, StoreError>>;

/// A page, and where the next one begins.
struct Page {
    blobs: Vec<StoredBlob>,
    next: Cursor,
    more: More,
}

/// Blobs of the open mailboxes, of each in order, as long as the session lives.
pub struct Feed {
    service: Arc<Service>,
    mailboxes: Arc<Mailboxes>,
    inbox: Arc<Inbox>,
    page: VecDeque<StoredBlob>,
    /// When it was read.
    read_at: Timestamp,
    /// Where the page would begin, were it read again.
    begins: Option<Cursor>,
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
    /// A page could not be read, or not to its end; look again after a rest.
    Resting(Pin<Box<Sleep>>),
}

impl Step {
    fn rest() -> Self {
        Self::Resting(Box::pin(tokio::time::sleep(RETRY)))
    }
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
    /// A feed of these mailboxes. The caller joins the hub for each of them with `inbox`.
    pub fn new(service: Arc<Service>, mailboxes: Arc<Mailboxes>, inbox: Arc<Inbox>) -> Self {
        Self {
            service,
            mailboxes,
            inbox,
            page: VecDeque::new(),
            read_at: Timestamp::default(),
            begins: None,
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
                        tracing::warn!(?error, "cannot read a page of a mailbox; retrying");
                        self.turn
                            .take()
                            .iter()
                            .for_each(|turn| self.mailboxes.put_back(turn));
                        Step::rest()
                    }
                },
                Step::Idle => {
                    self.is_caught_up = true;
                    match self.inbox.poll_take(context) {
                        Poll::Ready(Woken::Marks(marked)) => self.mailboxes.look_at(marked),
                        Poll::Ready(Woken::Back(to)) => self.mailboxes.go_back(to),
                        Poll::Ready(Woken::UpTo(keys)) => {
                            let missed = self.mailboxes.catch_up(keys);
                            self.service.note_missed_words(missed);
                        }
                        Poll::Ready(Woken::Hint(hint)) => match self.hinted(*hint, &admits) {
                            Some(fed) => return Poll::Ready(fed),
                            None => continue,
                        },
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
    /// than its blobs live, or than what was read of them is true.
    fn next_of_page(&mut self, admits: &impl Fn(u64) -> bool) -> Option<Fed> {
        let turn = self.turn?;
        if !self.page.is_empty() && !self.mailboxes.is_current(&turn) {
            self.page.clear();
        }
        let now = self.service.now();
        self.put_back_old_page(&turn, now, admits);
        while let Some(blob) = self.page.front() {
            if blob.expires_at > now && !admits(delivered_bytes(blob)) {
                return Some(Fed::Full);
            }
            if let Some(blob) = self.page.pop_front()
                && blob.expires_at > now
            {
                self.mailboxes.handed_out(&turn.mailbox, blob.key);
                if let Some(begins) = &mut self.begins {
                    *begins = Cursor::After(blob.key);
                }
                return Some(Fed::Blob(turn.mailbox, blob));
            }
        }
        if matches!(self.step, Step::Look) {
            self.mailboxes.finished(&turn);
        }
        None
    }

    /// A blob whose time seems to be over may have been extended since. Age alone counts only when
    /// something would be handed out: while the window is full a page is not read for nothing.
    fn put_back_old_page(&mut self, turn: &Turn, now: Timestamp, admits: &impl Fn(u64) -> bool) {
        let (Some(first), Some(begins)) = (self.page.front(), self.begins) else {
            return;
        };
        let is_old = now.since(self.read_at) >= PAGE_FRESH;
        if first.expires_at <= now || (is_old && admits(delivered_bytes(first))) {
            self.page.clear();
            self.mailboxes.put_back_from(turn, begins);
        }
    }

    /// The blob of a hint, when it is the next one and the window has room for it.
    fn hinted(&self, hint: Hint, admits: &impl Fn(u64) -> bool) -> Option<Fed> {
        let Hint {
            mailbox,
            previous,
            blob,
        } = hint;
        let is_alive = blob.expires_at > self.service.now();
        let has_room = is_alive && admits(delivered_bytes(&blob));
        let keys = (previous, blob.key);
        let hinted = self
            .mailboxes
            .hinted(&mailbox, keys, (blob.class, has_room));
        (hinted == Hinted::Deliver).then_some(Fed::Blob(mailbox, blob))
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
            && self.mailboxes.turned(turn, page.next, page.more.is_any())
        {
            self.page = page.blobs.into();
            self.read_at = self.service.now();
            // What waited for a device comes by version, and is passed over when its time is over.
            self.begins = match turn.cursor {
                Cursor::After(_) => Some(turn.cursor),
                Cursor::Backlog(_) => None,
            };
        }
        match page.more {
            More::No | More::Yes => Step::Look,
            // What is there already is handed out while it rests.
            More::Soon => Step::rest(),
        }
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
            let (next, more) = match page.more {
                // After the backlog something may have come already.
                More::No => (Cursor::After(page.next.up_to), More::Yes),
                more @ (More::Yes | More::Soon) => (Cursor::Backlog(page.next), more),
            };
            Ok(Page {
                blobs: page.blobs,
                next,
                more,
            })
        }
    }
}
