//! Recipients connect and collect what waits for them, until it is acknowledged and gone.

use super::{Sample, stores};
use crate::dialect::Heard;
use crate::generator::{Generator, Wait};
use crate::mailbox::Mailbox;
use crate::peers::Server;
use crate::{Bench, process, verify};

const RECIPIENTS: usize = 100;

pub fn run(bench: &Bench, server: &Server) -> Result<Sample, String> {
    let mailboxes: Vec<_> = (0..RECIPIENTS).map(Mailbox::owned).collect();
    stores::keep_sessions(bench, server, &mailboxes)?;
    let blobs = bench.drain_blobs;
    let counts = stores::fill(bench, server, &mailboxes, blobs)?;
    let mut generator = Generator::new(&bench.interrupted);
    let cpu = process::cpu_nanos(server.id());
    let began = generator.begin();
    for mailbox in &mailboxes {
        generator.connect(server.address, server.recipient(mailbox))?;
    }
    collect(&mut generator, counts, blobs)?;
    let (lasted, generator_busy) = (began.elapsed(), generator.busy_share(began));
    let cpu = (process::cpu_nanos(server.id()) - cpu) as f64;
    drop(generator);
    verify::holds(bench, server, &mailboxes, &[0; RECIPIENTS])?;
    Ok(Sample {
        per_second: blobs as f64 / lasted.as_secs_f64(),
        cpu_micros: cpu / 1e3 / blobs as f64,
        generator_busy,
        ..Sample::default()
    })
}

/// Link `n` has to get `missing[n]` blobs; each of the `blobs` comes once.
fn collect(generator: &mut Generator, mut missing: Vec<usize>, blobs: usize) -> Result<(), String> {
    let mut has_come = vec![false; blobs];
    let mut gone = 0;
    while gone < blobs {
        for (link, heard) in generator.turn(Wait::Sleep)? {
            match heard {
                Heard::Blob(stamp) => {
                    match has_come.get_mut(stamp as usize) {
                        Some(has_come) if !*has_come => *has_come = true,
                        _ => return Err(format!("blob {stamp} came twice or was never sent")),
                    }
                    let left = missing[link].checked_sub(1);
                    missing[link] = left.ok_or("a mailbox had more than it was given")?;
                    // All that came with it, too: the next call has nothing left.
                    generator.acknowledge(link);
                    if missing[link] == 0 {
                        generator.settle(link);
                    }
                }
                Heard::Gone(count) => gone += count,
                Heard::Open => {}
                Heard::Stored => return Err("an answer to no store".to_owned()),
            }
        }
    }
    Ok(())
}
