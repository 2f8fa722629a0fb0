//! What the client has asked and has not been answered, and which mailboxes it has open: what outlives
//! a connection. No socket and no clock.
//!
//! All that is unanswered when a connection is lost is asked again on the next. Every request may be:
//! a submit keeps its id, and the others do nothing the second time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::ClientError;
use crate::client::acknowledgements::Acknowledgements;
use crate::client::arrivals::Arrivals;
use crate::client::blob::Item;
use crate::client::duplicates::Acknowledging;
use crate::client::keyring::Keyring;
use crate::client::options::Options;
use crate::client::request::{
    Ask, Asked, FRAME_SPARE_BYTES, Key, Live, Outcome, RATE_LIMITED, SHUTTING_DOWN, Waiter,
    refused_for,
};
use crate::client::send_order::{Next, SendOrder};
use crate::ids::MailboxId;
use crate::protocol::message::Refused;
use crate::protocol::v2::client::{ServerFrame, encode_request};
use crate::protocol::v2::message::{Done, GoAway};
use crate::protocol::v2::{Answer, Request, Tag};

/// Items in one acknowledgement, as relays take them.
const ACKNOWLEDGE_MAX: usize = 1_000;

/// What one item of an acknowledgement takes in its frame, and one opening, at the most.
const ITEM_BYTES: usize = 64;
const OPENING_BYTES: usize = 128;

/// What a frame has brought.
pub(super) enum Heard {
    Nothing,
    /// The relay has done what was asked.
    Answer,
    Event,
    GoAway(GoAway),
}

pub(super) struct State {
    live: Option<Live>,
    /// What the last connection was to.
    relay_id: Option<[u8; 32]>,
    window: (u32, u64),
    frame_bytes_max: usize,
    repeat_for: Duration,
    last_number: u32,
    /// By number, and so in the order asked.
    asked: BTreeMap<Tag, Asked>,
    /// Whose turn it is on this connection.
    send_order: SendOrder,
    acknowledged: Acknowledgements,
    keyring: Keyring,
    /// Mailboxes are being opened again; what needs them waits.
    reopening: BTreeSet<Tag>,
    /// Open at the relay and wanted by nobody. Written before anything else, so that there are no more
    /// than in the openings that were unanswered at that time.
    strays: Vec<MailboxId>,
    is_sent_away: bool,
    is_closing: bool,
    ended: Option<ClientError>,
    /// Why there is no connection.
    pub(super) trouble: Option<ClientError>,
    pub(super) arrivals: Arrivals,
}

impl State {
    pub(super) fn new(options: &Options) -> Self {
        let window = (options.window_blobs.max(1), options.window_bytes.max(1));
        Self {
            live: None,
            relay_id: None,
            window,
            frame_bytes_max: options.message_bytes_max,
            repeat_for: options.repeat_for,
            last_number: 0,
            asked: BTreeMap::new(),
            send_order: SendOrder::default(),
            acknowledged: Acknowledgements::default(),
            keyring: Keyring::default(),
            reopening: BTreeSet::new(),
            strays: Vec::new(),
            is_sent_away: false,
            is_closing: false,
            trouble: None,
            ended: None,
            arrivals: Arrivals::new(window.0, window.1),
        }
    }

    pub(super) fn live(&self) -> Option<&Live> {
        self.live.as_ref()
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

    /// Notes a request; its number, for who comes to lose patience. `None` when all is over.
    pub(super) fn ask(&mut self, ask: Ask, waiter: Waiter) -> Option<Tag> {
        if let Some(why) = &self.ended {
            waiter.tell(Err(why.clone()));
            return None;
        }
        let number = self.note(ask, vec![waiter]);
        self.send_order.put(number);
        Some(number)
    }

    /// Nobody waits for the answer any more, and it is not asked again. What closes mailboxes is: what
    /// comes from them would hold the window, and nobody could acknowledge it.
    ///
    /// The last refusal, if it was not written again since: then it is known that it was not done.
    pub(super) fn abandon(&mut self, number: Tag) -> Option<ClientError> {
        let closes = |asked: &Asked| matches!(asked.ask, Ask::Request(Request::Unsubscribe(_)));
        if self.asked.get(&number).is_some_and(closes) {
            return None;
        }
        let is_sent = self.send_order.remove(number);
        let Asked { ask, refusal, .. } = self.asked.remove(&number)?;
        if let (Ask::Open(keys), true) = (ask, is_sent) {
            self.close_strays(&keys);
        }
        refusal
    }

    /// The relay opens these, and nobody wants them any more.
    fn close_strays(&mut self, keys: &[Key]) {
        for mailbox in keys.iter().map(|key| key.key.mailbox()) {
            let mut asked = self.asked.iter();
            // An opening that is written after they are closed opens them.
            let is_wanted = self.keyring.is_open(&mailbox)
                || asked.any(|(number, asked)| {
                    self.send_order.is_sent(*number) && asked.opens(&mailbox)
                });
            if !is_wanted {
                self.arrivals.unsubscribed(&mailbox);
                self.strays.push(mailbox);
            }
        }
    }

    pub(super) fn acknowledge(&mut self, item: Item, waiter: Waiter) {
        if let Some(why) = &self.ended {
            return waiter.tell(Err(why.clone()));
        }
        match self.arrivals.acknowledged(item) {
            Acknowledging::Here => self.acknowledged.push(item, waiter),
            Acknowledging::Elsewhere => waiter.tell(Err(ClientError::OtherRelay)),
            Acknowledging::Nothing => {
                waiter.tell(Ok(Answer::Done(Done::Acknowledged)));
            }
        }
    }

    /// What was acknowledged before goes first; then the mailboxes are not opened again.
    /// Without a connection nobody knows which mailboxes will be open on the next, and where that is: who
    /// has acknowledged in these is told that they are closed.
    pub(super) fn unsubscribe(&mut self, mailboxes: Vec<MailboxId>, waiter: Waiter) -> Option<Tag> {
        if self.live.is_some() && self.reopening.is_empty() {
            self.gather_acknowledgements();
        }
        for mailbox in &mailboxes {
            self.keyring.remove(mailbox);
            self.arrivals.unsubscribed(mailbox);
        }
        self.ask(Ask::Request(Request::Unsubscribe(mailboxes)), waiter)
    }

    fn note(&mut self, ask: Ask, waiters: Vec<Waiter>) -> Tag {
        loop {
            self.last_number = self.last_number.wrapping_add(1);
            // Zero is no number; after a round of them one may be in use.
            if let Some(number) = Tag::new(self.last_number)
                && !self.asked.contains_key(&number)
            {
                self.asked.insert(number, Asked::new(ask, waiters));
                return number;
            }
        }
    }

    /// A connection is there: what is unanswered is to be asked on it.
    pub(super) fn connected(&mut self, live: Live, now: Instant) {
        let relay_id = live.welcome.relay_id;
        let last = self.relay_id.replace(relay_id);
        self.arrivals.connected(relay_id);
        if last.is_some_and(|id| id != relay_id) {
            self.leave_the_other_relay();
        }
        self.trouble = None;
        self.is_sent_away = false;
        for (number, asked) in &self.asked {
            // What is due comes back with the first look.
            let until = asked.not_before.unwrap_or(now);
            self.send_order.put_off(*number, until);
        }
        if live.welcome.limits.window_default != self.window {
            // Before the mailboxes, whose deliveries it bounds.
            let (blobs, bytes) = self.window;
            let number = self.note(Ask::Window(blobs, bytes), Vec::new());
            self.send_order.put_first(number);
        }
        self.live = Some(live);
        self.reopen(&self.keyring.all());
    }

    /// What the other one delivered cannot be acknowledged here.
    fn leave_the_other_relay(&mut self) {
        self.acknowledged.end(&ClientError::OtherRelay);
        for asked in self.asked.values_mut() {
            (asked.not_before, asked.refused_since) = (None, None);
        }
    }

    /// Opens these before anything else is asked.
    fn reopen(&mut self, keys: &[Key]) {
        for part in keys.chunks(self.items_max(OPENING_BYTES)) {
            let number = self.note(Ask::Reopen(part.to_vec()), Vec::new());
            self.send_order.put_first(number);
            self.reopening.insert(number);
        }
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.live = None;
        self.reopening.clear();
        self.send_order = SendOrder::default();
        self.strays.clear();
        self.arrivals.disconnected();
        // Acknowledgements go back into the queue: a mailbox may not open again, and one that is not
        // open would spoil the others' frame.
        let mut back = Vec::new();
        self.asked.retain(|_, asked| match &mut asked.ask {
            Ask::Reopen(_) | Ask::Leave(_) | Ask::Window(..) | Ask::Ping => false,
            Ask::Request(Request::Acknowledge(items)) => {
                let items = items.drain(..).map(|(mailbox, id)| Item { mailbox, id });
                back.extend(items.zip(asked.waiters.drain(..)));
                false
            }
            _ => true,
        });
        self.acknowledged.give_back(back);
    }

    /// It is over: everybody who waits is told why.
    pub(super) fn end(&mut self, why: ClientError) {
        self.disconnected();
        let asked = std::mem::take(&mut self.asked);
        for waiter in asked.into_values().flat_map(|asked| asked.waiters) {
            waiter.tell(Err(why.clone()));
        }
        self.acknowledged.end(&why);
        self.ended = Some(why);
    }

    /// Asks the relay whether it is there.
    pub(super) fn ping(&mut self) {
        let number = self.note(Ask::Ping, Vec::new());
        self.send_order.put_first(number);
    }

    /// The relay wants us to go. It answers what it has read and takes acknowledgements.
    pub(super) fn sent_away(&mut self) {
        self.is_sent_away = true;
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.live.is_none() {
            return Next::Idle(None);
        }
        if let Some(frame) = self.unsubscribe_strays() {
            return Next::Write(frame);
        }
        self.send_order.bring_back(now);
        if self.reopening.is_empty() {
            self.gather_acknowledgements();
            if let Some(frame) = self.acknowledge_again() {
                return Next::Write(frame);
            }
            self.open_anew();
        }
        while let Some(number) = self.take_next() {
            match self.encode(number) {
                Some(Ok(frame)) => {
                    self.send_order.sent(number);
                    return Next::Write(frame);
                }
                Some(Err(why)) => {
                    self.answer(number, Err(why));
                }
                None => {}
            }
        }
        if self.is_finished() || (self.is_sent_away && self.owes_nothing_here()) {
            return Next::Leave;
        }
        Next::Idle(self.send_order.due())
    }

    fn gather_acknowledgements(&mut self) {
        let count_max = self.items_max(ITEM_BYTES).min(ACKNOWLEDGE_MAX);
        while let Some((ask, waiters)) = self
            .acknowledged
            .gather(count_max, |mailbox| self.keyring.is_open(mailbox))
        {
            let number = self.note(ask, waiters);
            self.send_order.put(number);
        }
    }

    /// How many of these fit into a frame for any relay, or for this one.
    fn items_max(&self, bytes_each: usize) -> usize {
        let live = self.live.as_ref();
        let bytes = live.map_or(0, |live| live.blob_bytes_max().min(self.frame_bytes_max));
        (bytes + FRAME_SPARE_BYTES) / bytes_each
    }

    fn unsubscribe_strays(&mut self) -> Option<Bytes> {
        let count = self.strays.len().min(self.items_max(ITEM_BYTES));
        let mailboxes: Vec<_> = self.strays.drain(..count).collect();
        let request = Request::Unsubscribe(mailboxes);
        (count > 0).then(|| encode_request(None, &request))
    }

    fn acknowledge_again(&mut self) -> Option<Bytes> {
        let count_max = self.items_max(ITEM_BYTES).min(ACKNOWLEDGE_MAX);
        let items = self.arrivals.came_again(count_max);
        if items.is_empty() {
            return None;
        }
        let items = items.into_iter().map(|item| (item.mailbox, item.id));
        let request = Request::Acknowledge(items.collect());
        // Without a number: whoever acknowledged it has had an answer, or waits for one.
        Some(encode_request(None, &request))
    }

    /// What there was no room for is delivered again to a new subscription.
    fn open_anew(&mut self) {
        if self.is_sent_away {
            return;
        }
        let count_max = self.items_max(OPENING_BYTES);
        let is_open = |mailbox: &MailboxId| self.keyring.is_open(mailbox);
        let missed = self.arrivals.missed(count_max, is_open);
        let keys = self.keyring.each_of(&missed);
        if !keys.is_empty() {
            let number = self.note(Ask::Leave(missed), Vec::new());
            self.send_order.put_first(number);
            self.reopen(&keys);
        }
    }

    fn take_next(&mut self) -> Option<Tag> {
        let others_may = self.reopening.is_empty() && self.send_order.has_room();
        let (asked, is_sent_away) = (&self.asked, self.is_sent_away);
        let may_go = |ask: &Ask| match ask {
            Ask::Reopen(_) | Ask::Leave(_) | Ask::Window(..) | Ask::Ping => true,
            Ask::Request(Request::Acknowledge(_)) => others_may,
            Ask::Request(_) | Ask::Submit { .. } | Ask::Open(_) => others_may && !is_sent_away,
        };
        self.send_order
            .take(|number| asked.get(&number).is_some_and(|asked| may_go(&asked.ask)))
    }

    fn encode(&mut self, number: Tag) -> Option<Result<Bytes, ClientError>> {
        let asked = self.asked.get_mut(&number)?;
        let live = self.live.as_ref()?;
        asked.refusal = None;
        Some(asked.ask.encode(number, live, self.frame_bytes_max))
    }

    /// Whoever has blobs in hand may still acknowledge them, until the relay closes.
    fn owes_nothing_here(&self) -> bool {
        !self.send_order.is_any_sent()
            && self.acknowledged.is_empty()
            && !self.arrivals.is_any_in_hand()
    }

    /// Takes in what the relay says.
    pub(super) fn hear(&mut self, frame: ServerFrame, now: Instant) -> Heard {
        let (answers, answer) = match frame {
            ServerFrame::Known { answers, answer } => (answers, answer),
            ServerFrame::Unknown { answers: None } => return Heard::Nothing,
            ServerFrame::Unknown {
                answers: Some(number),
            } => {
                let why = ClientError::Protocol("the answer is of a later protocol version");
                return self.answer(number, Err(why));
            }
        };
        let is_event = match answer {
            Answer::Blob(blob) => self.is_open(&blob.mailbox) && self.arrivals.blob(blob),
            Answer::Receipt(receipt) => {
                self.is_open(&receipt.mailbox) && self.arrivals.receipt(&receipt)
            }
            Answer::CaughtUp(mut mailboxes) => {
                mailboxes.retain(|mailbox| self.is_open(mailbox));
                self.arrivals.caught_up(mailboxes)
            }
            Answer::GoAway(go_away) => return Heard::GoAway(go_away),
            // Nobody says hello.
            Answer::Welcome(_) => false,
            Answer::Refused(refused) => {
                return answers.map_or(Heard::Nothing, |number| self.refused(number, refused, now));
            }
            Answer::Stored { .. }
            | Answer::Handed
            | Answer::Subscribed(_)
            | Answer::Windowed { .. }
            | Answer::Done(_)
            | Answer::Purged(_)
            | Answer::RecoveryKept { .. }
            | Answer::RecoveryFound { .. } => {
                return answers.map_or(Heard::Nothing, |number| self.answer(number, Ok(answer)));
            }
        };
        match is_event {
            true => Heard::Event,
            false => Heard::Nothing,
        }
    }

    /// Whether what comes from there is wanted. The answer to an opening may come behind a delivery, and
    /// deliveries behind the answer that a mailbox is closed.
    fn is_open(&self, mailbox: &MailboxId) -> bool {
        let mut asked = self.asked.iter();
        self.keyring.is_open(mailbox)
            || asked
                .any(|(number, asked)| asked.opens(mailbox) && !self.closes_after(*number, mailbox))
    }

    /// Whether this mailbox is to be closed by a later request.
    fn closes_after(&self, number: Tag, mailbox: &MailboxId) -> bool {
        let mut later = self.asked.range(number..);
        later.any(|(_, asked)| asked.closes(mailbox))
    }

    fn refused(&mut self, number: Tag, refused: Refused, now: Instant) -> Heard {
        let Some(asked) = self.asked.get_mut(&number) else {
            return Heard::Nothing;
        };
        if refused.code == SHUTTING_DOWN {
            // Asked again on the next connection.
            self.send_order.remove(number);
            return Heard::Nothing;
        }
        if let Some(at) = asked.again_at(now, &refused, self.repeat_for) {
            if refused.code == RATE_LIMITED {
                self.send_order.begin_slowly();
            }
            self.send_order.put_off(number, at);
            return Heard::Nothing;
        }
        self.answer(number, Err(refused_for(&refused)))
    }

    fn answer(&mut self, number: Tag, answer: Outcome) -> Heard {
        let Some(asked) = self.asked.remove(&number) else {
            return Heard::Nothing;
        };
        self.send_order.answered(number);
        let has_served = answer.is_ok();
        let answer = match asked.ask {
            Ask::Open(keys) => {
                let mailboxes = keys.iter().map(|key| key.key.mailbox());
                let closed = mailboxes.filter(|mailbox| self.closes_after(number, mailbox));
                let closed: HashSet<_> = closed.collect();
                self.keyring.opened(keys, &answer, &closed);
                answer
            }
            Ask::Reopen(keys) => {
                self.reopening.remove(&number);
                let arrivals = &mut self.arrivals;
                self.keyring.reopened(&keys, &answer, arrivals);
                answer
            }
            Ask::Leave(mailboxes) => {
                self.arrivals.left(&mailboxes);
                answer
            }
            _ => answer,
        };
        for waiter in asked.waiters {
            waiter.tell(answer.clone());
        }
        match has_served {
            true => Heard::Answer,
            false => Heard::Nothing,
        }
    }
}

#[cfg(test)]
mod mailbox_tests;
#[cfg(test)]
mod tests;
