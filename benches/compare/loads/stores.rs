//! Stores to mailboxes whose owners are away, as many as the server takes: a closed loop.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Sample, percentile};
use crate::Bench;
use crate::dialect::Heard;
use crate::generator::{Generator, Wait};
use crate::mailbox::{Bodies, Mailbox};
use crate::peers::{Server, Subject};
use crate::{process, verify};

const CONNECTIONS: usize = 32;
const IN_FLIGHT: usize = 16;
const MAILBOXES: usize = 10_000;
/// Mailboxes of the blobs that wait before.
const WAITING_MAILBOXES: usize = 100_000;

/// Sessions that mosquitto gets at the same time.
const SESSIONS_AT_ONCE: usize = 32;

pub fn run(bench: &Bench, server: &Server, body: usize, waiting: usize) -> Result<Sample, String> {
    let mut counts = vec![0; MAILBOXES];
    let mut mailboxes: Vec<_> = (0..MAILBOXES).map(Mailbox::offline).collect();
    keep_sessions(bench, server, &mailboxes)?;
    if waiting > 0 {
        let others = MAILBOXES..MAILBOXES + WAITING_MAILBOXES;
        let others: Vec<_> = others.map(Mailbox::offline).collect();
        counts.extend(fill(bench, server, &others, waiting)?);
        mailboxes.extend(others);
    }
    let (targets, target_counts) = (&mailboxes[..MAILBOXES], &mut counts[..MAILBOXES]);
    let mut loop_ = Loop::open(bench, server, Bodies::new(body))?;
    let sample = loop_.measure(bench, server, targets, target_counts)?;
    verify::holds(bench, server, &mailboxes, &counts)?;
    Ok(sample)
}

/// Stores exactly `blobs`, spread evenly; returns how many each mailbox got.
pub fn fill(
    bench: &Bench,
    server: &Server,
    mailboxes: &[Mailbox],
    blobs: usize,
) -> Result<Vec<usize>, String> {
    let mut counts = vec![0; mailboxes.len()];
    let mut loop_ = Loop::open(bench, server, Bodies::new(crate::BODY))?;
    loop_.stores_max = blobs;
    // With another step than one, neighbours in time are not neighbours in the mailboxes' order.
    let mut next = |sent: usize| {
        let place = (sent * 7_919) % mailboxes.len();
        counts[place] += 1;
        &mailboxes[place]
    };
    while loop_.answered < blobs {
        loop_.refill(&mut next);
        loop_.turn(None)?;
    }
    Ok(counts)
}

/// Mosquitto keeps blobs for sessions that it knows; the others keep them for whoever comes.
pub fn keep_sessions(bench: &Bench, server: &Server, mailboxes: &[Mailbox]) -> Result<(), String> {
    if server.subject != Subject::Mosquitto {
        return Ok(());
    }
    for some in mailboxes.chunks(SESSIONS_AT_ONCE) {
        let mut generator = Generator::new(&bench.interrupted);
        let sessions = some.iter().map(|mailbox| server.recipient(mailbox));
        for link in generator.open(server.address, sessions)? {
            generator.leave(link)?;
        }
    }
    Ok(())
}

/// Connections that each have so many stores in flight.
struct Loop {
    generator: Generator,
    bodies: Bodies,
    /// When each store in flight was sent, oldest first.
    in_flight: Vec<VecDeque<Instant>>,
    sent: usize,
    answered: usize,
    stores_max: usize,
}

impl Loop {
    fn open(bench: &Bench, server: &Server, bodies: Bodies) -> Result<Self, String> {
        let mut generator = Generator::new(&bench.interrupted);
        let senders = (0..CONNECTIONS).map(|number| server.sender(number));
        generator.open(server.address, senders)?;
        Ok(Self {
            generator,
            bodies,
            in_flight: vec![VecDeque::with_capacity(IN_FLIGHT); CONNECTIONS],
            sent: 0,
            answered: 0,
            stores_max: usize::MAX,
        })
    }

    fn refill<'a>(&mut self, next: &mut impl FnMut(usize) -> &'a Mailbox) {
        let now = Instant::now();
        for (link, waiting) in self.in_flight.iter_mut().enumerate() {
            while waiting.len() < IN_FLIGHT && self.sent < self.stores_max {
                let body = self.bodies.stamped(self.sent as u64);
                self.generator.store(link, next(self.sent), body);
                waiting.push_back(now);
                self.sent += 1;
            }
        }
    }

    /// Takes the answers that have come, and how long each took.
    fn turn(&mut self, mut took: Option<&mut Vec<u64>>) -> Result<(), String> {
        let heard = self.generator.turn(Wait::Sleep)?;
        let now = Instant::now();
        for (link, heard) in heard {
            match (heard, self.in_flight[link].pop_front()) {
                (Heard::Stored, Some(sent)) => {
                    self.answered += 1;
                    if let Some(took) = &mut took {
                        took.push((now - sent).as_nanos() as u64);
                    }
                }
                (other, _) => return Err(format!("{other:?} instead of an answer")),
            }
        }
        Ok(())
    }

    /// Warms up, measures, and takes the answers that are left.
    fn measure(
        &mut self,
        bench: &Bench,
        server: &Server,
        mailboxes: &[Mailbox],
        counts: &mut [usize],
    ) -> Result<Sample, String> {
        let mut next = |_| {
            let place = rand::random::<u32>() as usize % mailboxes.len();
            counts[place] += 1;
            &mailboxes[place]
        };
        self.until(Instant::now() + bench.warm_up, &mut next, None)?;
        let id = server.id();
        let (cpu, written) = (process::cpu_nanos(id), process::written_bytes(id));
        let (answered, began) = (self.answered, self.generator.begin());
        let mut took = Vec::with_capacity(1 << 20);
        self.until(began + bench.span, &mut next, Some(&mut took))?;
        let (lasted, generator_busy) = (began.elapsed(), self.generator.busy_share(began));
        let answered = (self.answered - answered) as f64;
        let cpu = (process::cpu_nanos(id) - cpu) as f64;
        let written = (process::written_bytes(id) - written) as f64;
        while self.answered < self.sent {
            self.turn(None)?;
        }
        Ok(Sample {
            per_second: answered / lasted.as_secs_f64(),
            p50_ms: percentile(&mut took, 0.50),
            p99_ms: percentile(&mut took, 0.99),
            cpu_micros: cpu / 1e3 / answered,
            written_bytes: written / answered,
            generator_busy,
            ..Sample::default()
        })
    }

    fn until<'a>(
        &mut self,
        end: Instant,
        next: &mut impl FnMut(usize) -> &'a Mailbox,
        mut took: Option<&mut Vec<u64>>,
    ) -> Result<(), String> {
        while Instant::now() < end {
            self.refill(next);
            self.turn(took.as_deref_mut())?;
        }
        Ok(())
    }
}
