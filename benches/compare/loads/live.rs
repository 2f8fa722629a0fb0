//! Blobs to recipients that are there, and acknowledged by them.
//!
//! [`run`] is an open loop: each blob has a time at which it is due, is sent then whatever became of the
//! earlier ones, and its latency counts from that time, so that a server that stalls is charged for all
//! that was due meanwhile. [`run_maximum`] keeps a number of blobs on their way instead.

use std::time::{Duration, Instant};

use super::{Sample, percentile};
use crate::dialect::Heard;
use crate::generator::{Generator, Wait};
use crate::mailbox::{Bodies, Mailbox};
use crate::peers::{Server, Subject};
use crate::{BODY, Bench, process, verify};

const PAIRS: usize = 50;
const IN_FLIGHT: usize = 16;

pub fn run(bench: &Bench, server: &Server, per_second: u64) -> Result<Sample, String> {
    let mut pairs = Pairs::open(bench, server)?;
    let pause = Duration::from_secs(1) / u32::try_from(per_second).unwrap();
    let (warm, all) = (bench.warm_up, bench.warm_up + bench.span);
    let count = |span: Duration| (span.as_nanos() / pause.as_nanos()) as usize;
    let began = pairs.generator.begin();
    let due = |number: usize| began + pause * u32::try_from(number).unwrap();
    let mut took = Vec::with_capacity(count(all));
    let mut cpu = None;
    while pairs.sent < count(all) {
        let now = Instant::now();
        while pairs.sent < count(all) && due(pairs.sent) <= now {
            pairs.send(pairs.sent % PAIRS);
        }
        if cpu.is_none() && now >= began + warm {
            cpu = Some((process::cpu_nanos(server.id()), pairs.arrived));
        }
        pairs.turn(Wait::Spin, |number, now| {
            if number >= count(warm) {
                took.push((now - due(number)).as_nanos() as u64);
            }
        })?;
    }
    let generator_busy = pairs.generator.busy_share(began);
    let (cpu, arrived) = cpu.ok_or("the span is too short")?;
    let cpu = (process::cpu_nanos(server.id()) - cpu) as f64;
    let measured = (pairs.arrived - arrived) as f64;
    let lasted = began.elapsed() - warm;
    pairs.finish(|number, now| {
        if number >= count(warm) {
            took.push((now - due(number)).as_nanos() as u64);
        }
    })?;
    pairs.check(bench, server)?;
    Ok(Sample {
        per_second: measured / lasted.as_secs_f64(),
        p50_ms: percentile(&mut took, 0.50),
        p99_ms: percentile(&mut took, 0.99),
        cpu_micros: cpu / 1e3 / measured,
        generator_busy,
        ..Sample::default()
    })
}

pub fn run_maximum(bench: &Bench, server: &Server) -> Result<Sample, String> {
    let mut pairs = Pairs::open(bench, server)?;
    let warm = Instant::now() + bench.warm_up;
    pairs.saturate(warm)?;
    let (cpu, arrived) = (process::cpu_nanos(server.id()), pairs.arrived);
    let began = pairs.generator.begin();
    pairs.saturate(began + bench.span)?;
    let (lasted, generator_busy) = (began.elapsed(), pairs.generator.busy_share(began));
    let arrived = (pairs.arrived - arrived) as f64;
    let cpu = (process::cpu_nanos(server.id()) - cpu) as f64;
    pairs.finish(|_, _| {})?;
    pairs.check(bench, server)?;
    Ok(Sample {
        per_second: arrived / lasted.as_secs_f64(),
        cpu_micros: cpu / 1e3 / arrived,
        generator_busy,
        ..Sample::default()
    })
}

/// Senders, each with a recipient. Link `n` sends to link `n + PAIRS`.
struct Pairs {
    generator: Generator,
    mailboxes: Vec<Mailbox>,
    bodies: Bodies,
    sent: usize,
    answered: usize,
    arrived: usize,
    gone: usize,
    /// Whether the blob with this number has arrived.
    has_arrived: Vec<bool>,
    /// Blobs of each pair that have not arrived.
    on_their_way: [usize; PAIRS],
}

impl Pairs {
    fn open(bench: &Bench, server: &Server) -> Result<Self, String> {
        let mailboxes: Vec<_> = (0..PAIRS).map(Mailbox::owned).collect();
        let mut generator = Generator::new(&bench.interrupted);
        let senders = (0..PAIRS).map(|number| server.sender(number));
        generator.open(server.address, senders)?;
        let recipients = mailboxes.iter().map(|mailbox| server.recipient(mailbox));
        generator.open(server.address, recipients)?;
        Ok(Self {
            generator,
            mailboxes,
            bodies: Bodies::new(BODY),
            sent: 0,
            answered: 0,
            arrived: 0,
            gone: 0,
            has_arrived: Vec::new(),
            on_their_way: [0; PAIRS],
        })
    }

    fn send(&mut self, pair: usize) {
        let body = self.bodies.stamped(self.sent as u64);
        self.generator.store(pair, &self.mailboxes[pair], body);
        self.has_arrived.push(false);
        self.on_their_way[pair] += 1;
        self.sent += 1;
    }

    /// Keeps each pair at its number of blobs until then.
    fn saturate(&mut self, end: Instant) -> Result<(), String> {
        while Instant::now() < end {
            for pair in 0..PAIRS {
                while self.on_their_way[pair] < IN_FLIGHT {
                    self.send(pair);
                }
            }
            self.turn(Wait::Sleep, |_, _| {})?;
        }
        Ok(())
    }

    /// Tells the number of each blob that has arrived, and acknowledges it.
    fn turn(&mut self, wait: Wait, mut arrived: impl FnMut(usize, Instant)) -> Result<(), String> {
        let heard = self.generator.turn(wait)?;
        if heard.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for (link, heard) in heard {
            match heard {
                Heard::Stored => self.answered += 1,
                Heard::Blob(stamp) => {
                    self.arrive(link, stamp as usize)?;
                    arrived(stamp as usize, now);
                    // All that came with it, too: the next call has nothing left.
                    self.generator.acknowledge(link);
                }
                Heard::Gone(count) => self.gone += count,
                Heard::Open => return Err("a link opened twice".to_owned()),
            }
        }
        Ok(())
    }

    fn arrive(&mut self, link: usize, number: usize) -> Result<(), String> {
        match self.has_arrived.get_mut(number) {
            Some(has_arrived) if !*has_arrived => *has_arrived = true,
            _ => return Err(format!("blob {number} came twice or was never sent")),
        }
        self.on_their_way[link - PAIRS] -= 1;
        self.arrived += 1;
        Ok(())
    }

    /// Waits until all that was sent is answered, delivered and gone.
    fn finish(&mut self, mut arrived: impl FnMut(usize, Instant)) -> Result<(), String> {
        while self.answered < self.sent || self.arrived < self.sent {
            self.turn(Wait::Sleep, &mut arrived)?;
        }
        for link in PAIRS..2 * PAIRS {
            self.generator.settle(link);
        }
        while self.gone < self.sent {
            self.turn(Wait::Sleep, &mut arrived)?;
        }
        Ok(())
    }

    /// Nothing may be left.
    fn check(&self, bench: &Bench, server: &Server) -> Result<(), String> {
        // It has handled every acknowledgement, and a look would take the open sessions over.
        if server.subject == Subject::Mosquitto {
            return Ok(());
        }
        verify::holds(bench, server, &self.mailboxes, &[0; PAIRS])
    }
}
