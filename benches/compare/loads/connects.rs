//! Connections that come, shake hands and stay silent: how fast, and the memory of each.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Sample;
use crate::dialect::Heard;
use crate::generator::{Generator, Wait};
use crate::peers::Server;
use crate::{Bench, process};

/// Handshakes at the same time.
const AT_ONCE: usize = 32;

/// Connections that come before: what a server allocates once is not a connection's.
const WARM_UP: usize = 100;

/// After the last handshake, until the memory is read.
const SETTLING: Duration = Duration::from_secs(1);

pub fn run(bench: &Bench, server: &Server) -> Result<Sample, String> {
    let mut generator = Generator::new(&bench.interrupted);
    connect(&mut generator, server, 0..WARM_UP)?;
    let (cpu, memory) = (
        process::cpu_nanos(server.id()),
        process::resident_bytes(server.id()),
    );
    let began = generator.begin();
    connect(&mut generator, server, WARM_UP..WARM_UP + bench.connections)?;
    let (lasted, generator_busy) = (began.elapsed(), generator.busy_share(began));
    let cpu = (process::cpu_nanos(server.id()) - cpu) as f64;
    let settled = Instant::now() + SETTLING;
    while Instant::now() < settled {
        if let Some((_, heard)) = generator.turn(Wait::Sleep)?.pop() {
            return Err(format!("{heard:?} on a silent connection"));
        }
    }
    let grown = process::resident_bytes(server.id()).saturating_sub(memory);
    let connections = bench.connections as f64;
    Ok(Sample {
        per_second: connections / lasted.as_secs_f64(),
        cpu_micros: cpu / 1e3 / connections,
        connection_kb: grown as f64 / 1e3 / connections,
        generator_busy,
        ..Sample::default()
    })
}

fn connect(
    generator: &mut Generator,
    server: &Server,
    mut numbers: Range<usize>,
) -> Result<(), String> {
    let mut shaking = 0;
    while shaking > 0 || !numbers.is_empty() {
        for number in numbers.by_ref().take(AT_ONCE - shaking) {
            generator.connect(server.address, server.sender(number))?;
            shaking += 1;
        }
        for (_, heard) in generator.turn(Wait::Sleep)? {
            match heard {
                Heard::Open => shaking -= 1,
                other => return Err(format!("{other:?} instead of a handshake")),
            }
        }
    }
    Ok(())
}
