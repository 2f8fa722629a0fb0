//! Any sequence of a relay's frames, connections and an application's wishes: never a panic, nobody waits for ever,
//! every request is one that a relay reads, no blob is given that did not come, none twice, and what the client keeps
//! of frames is bounded.
#![no_main]

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use vauchi_relay::client::fuzzing::{Offline, Waiting, is_proven};
use vauchi_relay::client::{Blob, BlobId, BlobSecret, Event, Item, MailboxId, MailboxKey, Options};
use vauchi_relay::clock::Timestamp;
use vauchi_relay::protocol::message::Refused;
use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame};
use vauchi_relay::protocol::v2::message::{
    BlobDelivery, Done, GoAway, GoAwayReason, Limits, Opened, ReceiptDelivery, ReceiptKind, Welcome,
};
use vauchi_relay::protocol::v2::{self, Answer, Incoming, Request, Tag};

const MAILBOXES: u8 = 3;
const IDS: u8 = 4;
const WINDOW: (u32, u64) = (3, 200);
/// Live-only blobs that wait for the application, at the most.
const LIVE_MAX: usize = 64;

static KEYS: LazyLock<Vec<MailboxKey>> = LazyLock::new(|| {
    (1..=MAILBOXES)
        .map(|n| MailboxKey::ed25519([n; 32]))
        .collect()
});

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let mut play = Play::new();
    while !input.is_empty() {
        // An input that ends within a step ends the play.
        if play.step(&mut input).is_err() {
            break;
        }
    }
    play.end();
});

struct Play {
    client: Offline,
    relay: Option<u8>,
    blob_bytes_max: u64,
    /// Written on this connection and not answered.
    written: Vec<(Tag, Request)>,
    waiting: Vec<Waiting>,
    /// Stored blobs and receipts that were given, and which relay they came from; until their mailbox is closed.
    given: HashMap<Item, u8>,
    taken: Vec<Item>,
    pings: usize,
}

impl Play {
    fn new() -> Self {
        let mut options = Options::new(["ws://relay.example"]);
        (options.window_blobs, options.window_bytes) = WINDOW;
        options.message_bytes_max = 5_000;
        Self {
            client: Offline::new(&options),
            relay: None,
            blob_bytes_max: 0,
            written: Vec::new(),
            waiting: Vec::new(),
            given: HashMap::new(),
            taken: Vec::new(),
            pings: 0,
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=18)? {
            0 => self.connect(input)?,
            1 => self.disconnect(),
            2 | 3 => self.write(),
            4 | 5 => self.answer(input)?,
            6..=8 => self.deliver(input)?,
            9 => self.receipt(input)?,
            10 => self.other_frame(input)?,
            11 => self.raw_frame(input)?,
            12 | 13 => self.take(),
            14 => self.acknowledge(input)?,
            15 => self.open(input)?,
            16 => self.unsubscribe(input)?,
            17 => self.submit(input)?,
            _ => self.other_wish(input)?,
        }
        Ok(())
    }

    fn connect(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.relay.is_some() {
            return Ok(());
        }
        let relay = input.int_in_range(1..=2)?;
        self.blob_bytes_max = *input.choose(&[0, 1, 100, 5_000, u64::MAX])?;
        let welcome = Welcome {
            relay_id: [relay; 32],
            server_version: "1".into(),
            challenge: [9; 32],
            limits: Limits {
                blob_bytes_max: self.blob_bytes_max,
                submits_per_minute: 0,
                ttl_default: Duration::ZERO,
                ttl_max: Duration::ZERO,
                mailboxes_max: 0,
                window_default: *input.choose(&[(0, 0), WINDOW, (u32::MAX, u64::MAX)])?,
                window_max: WINDOW,
                mailbox_blobs_max: 0,
                mailbox_bytes_max: 0,
            },
            keepalive: Duration::ZERO,
            features: Vec::new(),
            proof: None,
        };
        self.client.connect(welcome);
        self.relay = Some(relay);
        Ok(())
    }

    fn disconnect(&mut self) {
        self.client.disconnect();
        self.relay = None;
        self.written.clear();
        self.pings = 0;
    }

    /// Writes all that may go now.
    fn write(&mut self) {
        let mut again = HashSet::new();
        while let Some(frame) = self.client.write() {
            assert!(self.relay.is_some());
            let bytes_max = self
                .blob_bytes_max
                .saturating_mul(2)
                .saturating_add(4 << 10);
            assert!(frame.len() as u64 <= bytes_max, "{} bytes", frame.len());
            match v2::decode(&frame) {
                Incoming::Request {
                    tag: Some(tag),
                    request,
                } => {
                    self.written.retain(|(other, _)| *other != tag);
                    self.written.push((tag, request));
                }
                Incoming::Request {
                    tag: None,
                    request: Request::Acknowledge(items),
                } => {
                    assert!(
                        items.into_iter().all(|item| again.insert(item)),
                        "twice in a row"
                    );
                }
                Incoming::Request {
                    tag: None,
                    request: Request::Unsubscribe(_),
                } => {}
                other => panic!("{other:?}"),
            }
        }
        // Window; and for each mailbox, that it is left and opened again.
        let own_max = 1 + 2 * usize::from(MAILBOXES) + self.pings;
        assert!(self.written.len() <= self.waiting.len() + own_max);
    }

    fn hear(&mut self, answers: Option<Tag>, answer: Answer) -> bool {
        // Without a connection nothing is heard.
        self.relay.is_some() && self.client.hear(ServerFrame::Known { answers, answer })
    }

    fn answer(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        let at = input.choose_index(self.written.len())?;
        let (tag, request) = self.written.remove(at);
        let answer = match (input.int_in_range(0..=7)?, &request) {
            (0, _) => refused(input)?,
            (1, _) => any_answer(input)?,
            (_, Request::Submit(_)) => stored(),
            (_, Request::Subscribe(subscribe)) => {
                let openings = subscribe.openings.iter().map(|_| opened(input));
                Answer::Subscribed(openings.collect::<Result<_>>()?)
            }
            (_, Request::Window { blobs, bytes }) => Answer::Windowed {
                blobs: *blobs,
                bytes: *bytes,
            },
            (_, Request::Acknowledge(_)) => Answer::Done(Done::Acknowledged),
            (_, Request::Unsubscribe(_)) => Answer::Done(Done::Unsubscribed),
            _ => Answer::Done(Done::Pong),
        };
        self.hear(Some(tag), answer);
        self.waiting.retain_mut(Waiting::is_open);
        Ok(())
    }

    fn deliver(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let (mailbox, id) = (self.mailbox(input)?, self.id(input)?);
        let is_stored = !input.ratio(1, 4)?;
        let blob = BlobDelivery {
            id,
            mailbox,
            stored_at: Timestamp::default(),
            expires_at: is_stored.then(|| Timestamp::from_millis(1)),
            redelivered: input.arbitrary()?,
            body: vec![b'x'; *input.choose(&[0, 10, 100, 300])?].into(),
        };
        let is_given = self.hear(None, Answer::Blob(blob));
        self.came(is_given, is_stored, Item { mailbox, id });
        Ok(())
    }

    fn receipt(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let (mailbox, id) = (self.mailbox(input)?, self.id(input)?);
        let receipt = ReceiptDelivery {
            mailbox,
            receipt_id: id,
            id: self.id(input)?,
            kind: ReceiptKind::Expired,
            at: Timestamp::default(),
        };
        let is_given = self.hear(None, Answer::Receipt(receipt));
        self.came(is_given, true, Item { mailbox, id });
        Ok(())
    }

    fn came(&mut self, is_given: bool, is_stored: bool, item: Item) {
        // A name that another relay uses, too, is forgotten: a blob comes once as long as it comes from one relay.
        if self.given.get(&item).copied() != self.relay {
            self.given.remove(&item);
        }
        if !is_given {
            return;
        }
        if let (true, Some(relay)) = (is_stored, self.relay) {
            assert!(self.given.insert(item, relay) != Some(relay), "given twice");
        }
    }

    fn other_frame(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let tag = Tag::new(input.int_in_range(0..=40)?);
        let answer = any_answer(input)?;
        if self.relay.is_none() {
            return Ok(());
        }
        self.written.retain(|(other, _)| Some(*other) != tag);
        match input.ratio(1, 8)? {
            true => self.client.hear(ServerFrame::Unknown { answers: tag }),
            false => self.hear(tag, answer),
        };
        self.waiting.retain_mut(Waiting::is_open);
        Ok(())
    }

    /// Bytes as a relay may send them. What they deliver is not followed, so it comes to a client of its own.
    fn raw_frame(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let length = usize::from(input.arbitrary::<u8>()?);
        let frame = Bytes::copy_from_slice(input.bytes(length.min(input.len()))?);
        let Ok(frame) = decode_server_frame(&frame) else {
            return Ok(());
        };
        let mut other = Self::new();
        if let ServerFrame::Known {
            answer: Answer::Welcome(welcome),
            ..
        } = &frame
        {
            // Nobody has signed for this nonce.
            assert!(!is_proven(welcome, &[0x5a; 32], "relay.example"));
            other.blob_bytes_max = welcome.limits.blob_bytes_max;
            other.client.connect((**welcome).clone());
            other.relay = Some(0);
        }
        other.client.open(KEYS.clone());
        other.write();
        other.client.hear(frame);
        other.write();
        Ok(())
    }

    fn take(&mut self) {
        let Some(event) = self.client.take() else {
            return;
        };
        let item = match event {
            Event::Blob(blob) => blob.item,
            Event::Receipt(receipt) => receipt.item,
            Event::CaughtUp(_) | Event::Closed { .. } => return,
        };
        assert!(KEYS.iter().any(|key| key.mailbox() == item.mailbox));
        self.taken.push(item);
    }

    fn acknowledge(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let item = match self.taken.is_empty() || input.ratio(1, 8)? {
            true => Item {
                mailbox: self.mailbox(input)?,
                id: self.id(input)?,
            },
            false => self
                .taken
                .swap_remove(input.choose_index(self.taken.len())?),
        };
        let waiting = self.client.acknowledge(item);
        self.wait(waiting);
        Ok(())
    }

    fn open(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let first = input.choose_index(KEYS.len())?;
        let last = input.int_in_range(first..=KEYS.len() - 1)?;
        let waiting = self.client.open(KEYS[first..=last].to_vec());
        self.wait(waiting);
        Ok(())
    }

    fn unsubscribe(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mailbox = self.mailbox(input)?;
        let waiting = self.client.unsubscribe(vec![mailbox]);
        self.wait(waiting);
        self.given.retain(|item, _| item.mailbox != mailbox);
        Ok(())
    }

    fn submit(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut blob = Blob::new(
            self.mailbox(input)?,
            vec![b'x'; *input.choose(&[0, 100, 5_000, 5_001])?],
        );
        blob.secret = BlobSecret::from_bytes([input.arbitrary()?; 32]);
        let pads = input.arbitrary()?;
        let waiting = self.client.submit(&blob, pads);
        self.wait(waiting);
        Ok(())
    }

    fn other_wish(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=3)? {
            0 if self.relay.is_some() => {
                self.client.ping();
                self.pings += 1;
            }
            1 if !self.waiting.is_empty() => {
                let at = input.choose_index(self.waiting.len())?;
                if let Some(number) = self.waiting[at].number {
                    self.client.abandon(number);
                    // What it opened is closed, and what came from there may come again.
                    self.given.clear();
                    self.waiting.remove(at);
                }
            }
            _ => self
                .client
                .pass(Duration::from_millis(1 << input.int_in_range(0..=30)?)),
        }
        Ok(())
    }

    fn wait(&mut self, mut waiting: Waiting) {
        if waiting.is_open() {
            self.waiting.push(waiting);
        }
    }

    fn mailbox(&self, input: &mut Unstructured<'_>) -> Result<MailboxId> {
        Ok(input.choose(&KEYS[..])?.mailbox())
    }

    fn id(&self, input: &mut Unstructured<'_>) -> Result<BlobId> {
        Ok(BlobId::from_bytes([input.int_in_range(1..=IDS)?; 16]))
    }

    /// What the application did not take is bounded, and everybody is told that it is over.
    fn end(&mut self) {
        let (mut stored, mut live, mut words, mut closed) = (0, 0, 0, 0);
        while let Some(event) = self.client.take() {
            match event {
                Event::Blob(blob) if blob.expires_at.is_none() => live += 1,
                Event::Blob(_) | Event::Receipt(_) => stored += 1,
                Event::CaughtUp(_) => words += 1,
                Event::Closed { .. } => closed += 1,
            }
        }
        assert!(stored <= WINDOW.0 && live <= LIVE_MAX);
        assert!(words <= stored as usize + live + closed + 1);
        self.client.end();
        self.waiting.retain_mut(Waiting::is_open);
        assert!(self.waiting.is_empty(), "somebody waits for ever");
    }
}

fn stored() -> Answer {
    Answer::Stored {
        expires_at: Timestamp::default(),
        duplicate: false,
    }
}

fn opened(input: &mut Unstructured<'_>) -> Result<std::result::Result<Opened, &'static str>> {
    Ok(match input.ratio(1, 6)? {
        true => Err("unauthorized"),
        false => Ok(Opened {
            pending: 0,
            blobs: 0,
            bytes: 0,
        }),
    })
}

fn refused(input: &mut Unstructured<'_>) -> Result<Answer> {
    let codes = [
        "rate_limited",
        "shutting_down",
        "not_connected",
        "mailbox_full",
        "unauthorized",
    ];
    let waits = [None, Some(0), Some(1), Some(60_000), Some(u64::MAX)];
    Ok(Answer::Refused(Refused {
        code: input.choose(&codes)?,
        message: "".into(),
        retry_after: input.choose(&waits)?.map(Duration::from_millis),
    }))
}

/// One that may answer something else, or nothing.
fn any_answer(input: &mut Unstructured<'_>) -> Result<Answer> {
    Ok(match input.int_in_range(0..=8)? {
        0 => stored(),
        1 => Answer::Handed,
        2 => Answer::Subscribed(
            (0..input.int_in_range(0..=4)?)
                .map(|_| opened(input))
                .collect::<Result<_>>()?,
        ),
        3 => Answer::Windowed {
            blobs: input.arbitrary()?,
            bytes: input.arbitrary()?,
        },
        4 => Answer::Done(Done::Unsubscribed),
        5 => Answer::Purged(Vec::new()),
        6 => refused(input)?,
        7 => Answer::CaughtUp(vec![input.choose(&KEYS[..])?.mailbox()]),
        _ => Answer::GoAway(GoAway {
            reason: GoAwayReason::Draining,
            reconnect_after: Duration::from_millis(input.arbitrary()?),
            alternates: Vec::new().into(),
        }),
    })
}
