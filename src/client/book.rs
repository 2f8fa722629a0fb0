//! What the client has asked and has not been answered, which mailboxes it has open, what it has been
//! given: everything that outlives a connection. No socket and no clock.
//!
//! All that is unanswered when a connection is lost is asked again on the next. Every request may be:
//! a submit keeps its id, and the others do nothing the second time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use super::ClientError;
use super::ask::{Answer, Ask, Key, Live, Waiter, not_opened, number_of};
use super::blob::{Delivery, Event, Item, Receipt};
use super::inbox::Inbox;
use super::pad::unpad;
use super::seen::{Coming, Seen};
use crate::clock::Timestamp;
use crate::ids::MailboxId;
use crate::protocol::message::{Outgoing, Refused, Request, Tag};
use crate::protocol::message_v2::{BlobDelivery, GoAway, Limits, ReceiptDelivery};
use crate::protocol::v2_client::{ServerFrame, encode_request};

/// Items in one acknowledgement, as relays take them.
const ACKNOWLEDGE_MAX: usize = 1_000;

/// How many requests go out on a new connection before the first answer; each answer lets one more
/// go. Were everything sent at once, a network that breaks after a few kilobytes would carry the same
/// requests over and over, and never an answer.
const FIRST_MAX: usize = 4;

/// The word of a relay that takes no more submits because it is about to stop.
const SHUTTING_DOWN: &str = "shutting_down";

struct Asked {
    ask: Ask,
    waiters: Vec<Waiter>,
}

/// What the writer does next.
pub(super) enum Next {
    Write(Bytes),
    /// Nothing, until somebody asks or this time comes.
    Idle(Option<Instant>),
    /// Say goodbye.
    Leave,
}

/// What a frame has brought.
pub(super) enum Heard {
    Nothing,
    /// The relay has done what was asked.
    Answer,
    Event,
    GoAway(GoAway),
}

pub(super) struct Book {
    live: Option<Live>,
    /// What the last connection was to.
    relay_id: Option<[u8; 32]>,
    window: (u32, u64),
    last_number: u32,
    /// By number, and so in the order asked.
    asked: BTreeMap<u32, Asked>,
    /// To be written on this connection.
    unsent: VecDeque<u32>,
    /// Written on this connection.
    sent: BTreeSet<u32>,
    /// How many may be written and not answered now.
    sent_max: usize,
    /// To be written again at a time that the relay named.
    later: Vec<(Instant, u32)>,
    acknowledged: VecDeque<(Item, Waiter)>,
    /// Came once more after they were acknowledged; they hold a slot of the window until they are
    /// acknowledged again.
    came_again: Vec<Item>,
    keys: HashMap<MailboxId, Key>,
    /// Mailboxes are being opened again; what needs them waits.
    reopening: Option<u32>,
    seen: Seen,
    is_sent_away: bool,
    is_closing: bool,
    ended: Option<ClientError>,
    pub(super) inbox: Inbox,
}

impl Book {
    pub(super) fn new(window_blobs: u32, window_bytes: u64) -> Self {
        Self {
            live: None,
            relay_id: None,
            window: (window_blobs, window_bytes),
            last_number: 0,
            asked: BTreeMap::new(),
            unsent: VecDeque::new(),
            sent: BTreeSet::new(),
            sent_max: FIRST_MAX,
            later: Vec::new(),
            acknowledged: VecDeque::new(),
            came_again: Vec::new(),
            keys: HashMap::new(),
            reopening: None,
            seen: Seen::default(),
            is_sent_away: false,
            is_closing: false,
            ended: None,
            inbox: Inbox::new(window_blobs, window_bytes),
        }
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        self.live.as_ref().map(|live| live.welcome.limits)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.live.is_some()
    }

    pub(super) fn ended(&self) -> Option<&ClientError> {
        self.ended.as_ref()
    }

    /// Whether the client shall end and nothing is left to be done before.
    pub(super) fn is_finished(&self) -> bool {
        self.is_closing && self.asked.is_empty() && self.acknowledged.is_empty()
    }

    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) fn ask(&mut self, ask: Ask, waiter: Waiter) {
        match &self.ended {
            Some(why) => waiter.tell(Err(why.clone())),
            None => {
                let number = self.note(ask, vec![waiter]);
                self.unsent.push_back(number);
            }
        }
    }

    pub(super) fn acknowledge(&mut self, item: Item, waiter: Waiter) {
        if let Some(why) = &self.ended {
            return waiter.tell(Err(why.clone()));
        }
        self.seen.acknowledged(item);
        self.acknowledged.push_back((item, waiter));
    }

    /// What was acknowledged before goes first; then the mailboxes are not opened again.
    pub(super) fn unsubscribe(&mut self, mailboxes: Vec<MailboxId>, waiter: Waiter) {
        self.gather_acknowledgements();
        for mailbox in &mailboxes {
            self.keys.remove(mailbox);
        }
        self.ask(Ask::Request(Request::Unsubscribe(mailboxes)), waiter);
    }

    fn note(&mut self, ask: Ask, waiters: Vec<Waiter>) -> u32 {
        loop {
            self.last_number = self.last_number.wrapping_add(1);
            let number = self.last_number;
            // Zero means that no answer is wanted; after a round of numbers one may be in use.
            if number != 0 && !self.asked.contains_key(&number) {
                self.asked.insert(number, Asked { ask, waiters });
                return number;
            }
        }
    }

    /// A connection is there: what is unanswered is to be asked on it.
    pub(super) fn connected(&mut self, live: Live) {
        let relay_id = live.welcome.relay_id;
        if self
            .relay_id
            .replace(relay_id)
            .is_some_and(|id| id != relay_id)
        {
            self.forget_the_other_relay();
        }
        let window = live.welcome.limits.window_default;
        self.live = Some(live);
        self.is_sent_away = false;
        self.sent_max = FIRST_MAX;
        self.unsent = self.asked.keys().copied().collect();
        if window != self.window {
            let (blobs, bytes) = self.window;
            let number = self.note(Ask::Window(blobs, bytes), Vec::new());
            self.unsent.push_front(number);
        }
        if !self.keys.is_empty() {
            let keys = self.keys.values().cloned().collect();
            let number = self.note(Ask::Reopen(keys), Vec::new());
            self.unsent.push_front(number);
            self.reopening = Some(number);
        }
    }

    /// What the one relay delivered can not be acknowledged at another.
    fn forget_the_other_relay(&mut self) {
        self.seen.clear();
        for (_, waiter) in self.acknowledged.drain(..) {
            waiter.tell(Err(ClientError::OtherRelay));
        }
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.live = None;
        self.reopening = None;
        self.sent.clear();
        self.unsent.clear();
        self.later.clear();
        self.came_again.clear();
        // Acknowledgements go back into the queue: a mailbox may not open again, and one that is not
        // open would spoil the others' frame.
        let mut back = VecDeque::new();
        self.asked.retain(|_, asked| match &mut asked.ask {
            Ask::Reopen(_) | Ask::Window(..) => false,
            Ask::Request(Request::AcknowledgeEach(items)) => {
                let items = items.drain(..).map(|(mailbox, id)| Item { mailbox, id });
                back.extend(items.zip(asked.waiters.drain(..)));
                false
            }
            _ => true,
        });
        back.append(&mut self.acknowledged);
        self.acknowledged = back;
    }

    /// It is over: everybody who waits is told why.
    pub(super) fn end(&mut self, why: ClientError) {
        self.disconnected();
        let asked = std::mem::take(&mut self.asked);
        let waiters = asked.into_values().flat_map(|asked| asked.waiters);
        let acknowledged = self.acknowledged.drain(..).map(|(_, waiter)| waiter);
        for waiter in waiters.chain(acknowledged) {
            waiter.tell(Err(why.clone()));
        }
        self.ended = Some(why);
    }

    /// The relay wants us to go. It answers what it has read and takes acknowledgements.
    pub(super) fn sent_away(&mut self) {
        self.is_sent_away = true;
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.live.is_none() {
            return Next::Idle(None);
        }
        self.bring_back(now);
        if self.reopening.is_none() {
            self.gather_acknowledgements();
            if let Some(frame) = self.acknowledge_again() {
                return Next::Write(frame);
            }
        }
        let next = self.unsent.iter().position(|number| self.may_go(*number));
        if let Some(number) = next.and_then(|at| self.unsent.remove(at))
            && let Some(frame) = self.encode(number)
        {
            self.sent.insert(number);
            return Next::Write(frame);
        }
        if self.is_finished() || (self.is_sent_away && self.owes_nothing_here()) {
            return Next::Leave;
        }
        Next::Idle(self.later.iter().map(|(at, _)| *at).min())
    }

    fn bring_back(&mut self, now: Instant) {
        let unsent = &mut self.unsent;
        self.later.retain(|(at, number)| {
            let is_due = *at <= now;
            if is_due {
                unsent.push_back(*number);
            }
            !is_due
        });
    }

    fn gather_acknowledgements(&mut self) {
        while !self.acknowledged.is_empty() {
            let count = self.acknowledged.len().min(ACKNOWLEDGE_MAX);
            let (mut items, mut waiters) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (item, waiter) in self.acknowledged.drain(..count) {
                if self.keys.contains_key(&item.mailbox) {
                    items.push((item.mailbox, item.id));
                    waiters.push(waiter);
                } else {
                    waiter.tell(Err(ClientError::NotOpen));
                }
            }
            if !items.is_empty() {
                let ask = Ask::Request(Request::AcknowledgeEach(items));
                let number = self.note(ask, waiters);
                self.unsent.push_back(number);
            }
        }
    }

    fn acknowledge_again(&mut self) -> Option<Bytes> {
        if self.came_again.is_empty() {
            return None;
        }
        let items = self
            .came_again
            .drain(..)
            .map(|item| (item.mailbox, item.id));
        let request = Request::AcknowledgeEach(items.collect());
        // Zero: whoever acknowledged it has had an answer, or waits for one.
        Some(encode_request(&Tag::Number(0), &request))
    }

    fn may_go(&self, number: u32) -> bool {
        let Some(asked) = self.asked.get(&number) else {
            return false;
        };
        match &asked.ask {
            Ask::Reopen(_) | Ask::Window(..) => true,
            _ if self.reopening.is_some() || self.sent.len() >= self.sent_max => false,
            Ask::Request(Request::AcknowledgeEach(_)) => true,
            Ask::Request(_) | Ask::Open(_) => !self.is_sent_away,
        }
    }

    fn encode(&self, number: u32) -> Option<Bytes> {
        let asked = self.asked.get(&number)?;
        let tag = Tag::Number(number);
        let live = self.live.as_ref()?;
        Some(match &asked.ask {
            Ask::Request(request) => encode_request(&tag, request),
            Ask::Open(keys) | Ask::Reopen(keys) => encode_request(&tag, &live.subscribe(keys)),
            Ask::Window(blobs, bytes) => {
                let (blobs, bytes) = (*blobs, *bytes);
                encode_request(&tag, &Request::Window { blobs, bytes })
            }
        })
    }

    /// Whoever has blobs in hand may still acknowledge them, until the relay closes.
    fn owes_nothing_here(&self) -> bool {
        self.sent.is_empty() && self.acknowledged.is_empty() && !self.seen.is_any_in_hand()
    }

    /// Takes in what the relay says.
    pub(super) fn hear(&mut self, frame: ServerFrame, now: Instant) -> Heard {
        match frame {
            ServerFrame::Unknown { answers: 0 } => Heard::Nothing,
            ServerFrame::Unknown { answers } => {
                let why = ClientError::Protocol("the answer is one of a later version");
                self.answer(answers, Err(why))
            }
            ServerFrame::Known(Outgoing::Blob(blob)) => self.delivered(blob),
            ServerFrame::Known(Outgoing::Receipt(receipt)) => self.told(&receipt),
            ServerFrame::Known(Outgoing::CaughtUp { mailboxes }) => {
                self.inbox.push(Event::CaughtUp(mailboxes));
                Heard::Event
            }
            ServerFrame::Known(Outgoing::GoAway(go_away)) => Heard::GoAway(go_away),
            ServerFrame::Known(Outgoing::Refused { tag, refused }) => {
                let number = tag.map_or(0, |tag| tag.number());
                self.refused(number, refused, now)
            }
            ServerFrame::Known(answer) => match number_of(&answer) {
                Some(number) => self.answer(number, Ok(answer)),
                None => Heard::Nothing,
            },
        }
    }

    fn delivered(&mut self, blob: BlobDelivery) -> Heard {
        let item = Item {
            mailbox: blob.mailbox,
            id: blob.id,
        };
        // Live-only blobs are not stored, so they never come again.
        let is_stored = blob.expires_at != Timestamp::default();
        if is_stored && !self.is_new(item) {
            return Heard::Nothing;
        }
        self.inbox.push(Event::Blob(Delivery {
            item,
            stored_at: blob.stored_at,
            expires_at: is_stored.then_some(blob.expires_at),
            redelivered: blob.redelivered,
            body: unpad(blob.body),
        }));
        Heard::Event
    }

    fn told(&mut self, receipt: &ReceiptDelivery) -> Heard {
        let item = Item {
            mailbox: receipt.mailbox,
            id: receipt.receipt_id,
        };
        if !self.is_new(item) {
            return Heard::Nothing;
        }
        self.inbox.push(Event::Receipt(Receipt {
            item,
            blob: receipt.id,
            kind: receipt.kind,
            at: receipt.at,
        }));
        Heard::Event
    }

    fn is_new(&mut self, item: Item) -> bool {
        match self.seen.comes(item) {
            Coming::New => true,
            // Whoever has it will acknowledge it.
            Coming::InHand => false,
            Coming::Acknowledged => {
                self.came_again.push(item);
                false
            }
        }
    }

    fn refused(&mut self, number: u32, refused: Refused, now: Instant) -> Heard {
        let Some(asked) = self.asked.get(&number) else {
            return Heard::Nothing;
        };
        if refused.code == SHUTTING_DOWN {
            // Asked again on the next connection.
            self.sent.remove(&number);
            return Heard::Nothing;
        }
        let is_ours_to_repeat = matches!(
            asked.ask,
            Ask::Reopen(_) | Ask::Window(..) | Ask::Request(Request::AcknowledgeEach(_))
        );
        if let (true, Some(after)) = (is_ours_to_repeat, refused.retry_after) {
            self.sent.remove(&number);
            self.later.push((now + after, number));
            return Heard::Nothing;
        }
        let why = ClientError::Refused {
            code: refused.code.to_owned(),
            message: refused.message.into_owned(),
            retry_after: refused.retry_after,
        };
        self.answer(number, Err(why))
    }

    fn answer(&mut self, number: u32, answer: Answer) -> Heard {
        let Some(asked) = self.asked.remove(&number) else {
            return Heard::Nothing;
        };
        self.sent.remove(&number);
        self.sent_max = self.sent_max.saturating_add(1);
        let has_served = answer.is_ok();
        match (asked.ask, &answer) {
            (Ask::Open(keys), Ok(Outgoing::Subscribed { openings, .. })) => {
                for (key, opened) in keys.into_iter().zip(openings) {
                    if opened.is_ok() {
                        self.keys.insert(key.key.mailbox(), key);
                    }
                }
            }
            (Ask::Reopen(keys), outcome) => self.reopened(&keys, outcome),
            _ => {}
        }
        for waiter in asked.waiters {
            waiter.tell(answer.clone());
        }
        match has_served {
            true => Heard::Answer,
            false => Heard::Nothing,
        }
    }

    /// What does not open again is closed, and the application told so.
    fn reopened(&mut self, keys: &[Key], outcome: &Answer) {
        self.reopening = None;
        for (at, key) in keys.iter().enumerate() {
            let mailbox = key.key.mailbox();
            let why = match outcome {
                Ok(Outgoing::Subscribed { openings, .. }) => match openings.get(at) {
                    Some(Ok(_)) => continue,
                    Some(Err(code)) => not_opened(code),
                    None => ClientError::Protocol("too few mailboxes in the answer"),
                },
                Ok(_) => ClientError::Protocol("the answer is one to something else"),
                Err(why) => why.clone(),
            };
            if self.keys.remove(&mailbox).is_some() {
                self.inbox.push(Event::Closed { mailbox, why });
            }
        }
    }
}
