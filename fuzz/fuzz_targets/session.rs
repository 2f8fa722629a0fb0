//! Any sequence of requests, deliveries and orders in a session's state machine, compared with a list of what is in
//! flight.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use vauchi_relay::ids::{BlobId, MailboxHash};
use vauchi_relay::protocol::Version;
use vauchi_relay::service::refusal::Refusal;
use vauchi_relay::session::state::{Charge, Said, State, Verdict};
use vauchi_relay::session::window::{DEFAULT, MAX, Size, Slot};

/// Acknowledged ids that are not in flight, for each request that they cost.
const UNKNOWN_PER_REQUEST: usize = 100;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let version = match input.arbitrary() {
        Ok(true) => Version::V1,
        _ => Version::V2,
    };
    let mut play = Play {
        state: State::new(version),
        version,
        in_flight: BTreeMap::new(),
        size: DEFAULT,
        is_draining: false,
        is_closed: false,
    };
    while !input.is_empty() && play.step(&mut input).is_ok() {
        play.compare();
    }
});

struct Play {
    state: State,
    version: Version,
    /// Mailbox and blob, with the blob's bytes.
    in_flight: BTreeMap<(u8, u16), u64>,
    size: Size,
    is_draining: bool,
    is_closed: bool,
}

impl Play {
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=9)? {
            0 | 1 => self.ask(input)?,
            2 => self.arrive(input)?,
            3..=5 => self.deliver(input)?,
            6 => {
                let name = name(input)?;
                let was_there = self.in_flight.remove(&name).is_some();
                assert_eq!(self.state.acknowledged(slot(name)), was_there);
            }
            7 => {
                let mailbox = input.int_in_range(0..=2)?;
                self.in_flight.retain(|(of, _), _| *of != mailbox);
                self.state.forget(&MailboxHash::from_bytes([mailbox; 32]));
            }
            8 => self.resize(input)?,
            _ if input.ratio(1, 4)? => {
                self.state.drain();
                self.is_draining = true;
            }
            _ if input.ratio(1, 8)? => {
                self.state.closing();
                self.is_closed = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn ask(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let charge = *input.choose(&[Charge::Nothing, Charge::Request, Charge::Later])?;
        let refusal = Refusal::Invalid("any");
        let (said, mut expected) = match input.int_in_range(0..=4)? {
            0 => (Said::New(charge), Verdict::Serve(charge)),
            1 => (Said::Request(charge), Verdict::Serve(charge)),
            2 => (Said::Refused(refusal.clone()), Verdict::Refuse(refusal)),
            3 => (Said::Nothing, Verdict::Ignore),
            _ => return self.garble(),
        };
        let is_late = self.is_draining && self.version == Version::V2;
        if is_late && matches!(said, Said::New(_)) {
            expected = Verdict::Refuse(Refusal::ShuttingDown);
        }
        if self.is_closed {
            expected = Verdict::Ignore;
        }
        assert_eq!(self.state.judge(said), expected);
        Ok(())
    }

    fn garble(&mut self) -> Result<()> {
        let verdict = self.state.judge(Said::Garbage(Refusal::Invalid("any")));
        match (&verdict, self.is_closed) {
            (Verdict::Ignore, true) => {}
            (Verdict::Refuse(_), false) => assert_eq!(self.version, Version::V1),
            (Verdict::Close(..), false) => self.is_closed = true,
            _ => panic!("{verdict:?}"),
        }
        Ok(())
    }

    fn arrive(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let count = input.int_in_range(0..=250)?;
        let names: Vec<_> = (0..count).map(|_| name(input)).collect::<Result<_>>()?;
        let unknown = names
            .iter()
            .filter(|name| !self.in_flight.contains_key(name));
        let requests = unknown.count().div_ceil(UNKNOWN_PER_REQUEST) as u32;
        let expected = match (self.is_closed, requests) {
            (true, _) => Verdict::Ignore,
            (false, 0) => Verdict::Serve(Charge::Nothing),
            (false, requests) => Verdict::Serve(Charge::Requests(requests)),
        };
        let slots = names.into_iter().map(slot).collect();
        assert_eq!(self.state.judge(Said::Arrived(slots)), expected);
        Ok(())
    }

    /// As the writer does: only what the window admits.
    fn deliver(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let (name, bytes) = (
            name(input)?,
            *input.choose(&[0, 1, 1 << 10, 1 << 20, 64 << 20])?,
        );
        let is_admitted = self.state.admits(bytes);
        assert_eq!(is_admitted, self.admits(bytes));
        if is_admitted {
            self.state.delivered(slot(name), bytes);
            self.in_flight.insert(name, bytes);
        }
        Ok(())
    }

    fn admits(&self, bytes: u64) -> bool {
        let (blobs, held) = (self.in_flight.len(), self.in_flight.values().sum::<u64>());
        let fits = blobs < self.size.blobs as usize && held + bytes <= self.size.bytes;
        self.version == Version::V1 || blobs == 0 || fits
    }

    fn resize(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let size = Size {
            blobs: input.arbitrary()?,
            bytes: input.arbitrary()?,
        }
        .granted();
        assert!((1..=MAX.blobs).contains(&size.blobs) && (1..=MAX.bytes).contains(&size.bytes));
        // v1 has no request for it.
        if self.version == Version::V2 {
            self.state.resize(size);
            self.size = size;
        }
        Ok(())
    }

    fn compare(&self) {
        let is_open = !self.is_closed && !self.is_draining;
        assert_eq!(self.state.may_deliver(), is_open);
        let owes_nothing = self.is_draining && !self.is_closed && self.in_flight.is_empty();
        assert_eq!(self.state.is_drained(0), owes_nothing);
        assert!(!self.state.is_drained(1));
    }
}

fn name(input: &mut Unstructured<'_>) -> Result<(u8, u16)> {
    Ok((input.int_in_range(0..=2)?, input.int_in_range(0..=300)?))
}

fn slot((mailbox, blob): (u8, u16)) -> Slot {
    let blob = u128::from(blob).to_be_bytes();
    (
        MailboxHash::from_bytes([mailbox; 32]),
        BlobId::from_bytes(blob),
    )
}
