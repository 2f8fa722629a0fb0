//! What a backup costs those who store meanwhile.

use std::cell::Cell;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::BODY;
use crate::peer::Version;
use crate::relay::Relay;
use crate::stores::store_load;

/// How large the database is at least that is backed up.
const FILLING: u64 = 1 << 30;

/// Fills a relay, and backs it up under three loads.
pub async fn backup_under_load(span: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(Path::new(env!("CARGO_BIN_EXE_vauchi-relay")), folder.path());
    let until = Cell::new(Instant::now() + Duration::from_secs(3_600));
    let log = folder.path().join("relay.db-wal");
    let log_bytes = || log.metadata().unwrap().len();
    let filling = async {
        let database = folder.path().join("relay.db");
        while database.metadata().unwrap().len() < FILLING {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until.set(Instant::now());
    };
    let (filled, ()) = tokio::join!(
        store_load(Version::V1, relay.clients, 32, 16, &until),
        filling
    );
    println!("filled with {} blobs of {BODY} bytes", filled.len());
    for (connections, in_flight) in [(1, 1), (32, 1), (32, 16)] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        until.set(Instant::now() + Duration::from_secs(3_600));
        let backup = async {
            tokio::time::sleep(span).await;
            let (began, mut largest) = (Instant::now(), 0);
            let to = folder.path().join(format!("{connections}-{in_flight}.tar"));
            let mut command = Command::new(env!("CARGO_BIN_EXE_vauchi-relay"));
            let mut running = command
                .env("RELAY_DATA_DIR", folder.path())
                .arg("backup")
                .arg(&to)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let status = loop {
                largest = largest.max(log_bytes());
                match running.try_wait().unwrap() {
                    Some(status) => break status,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            assert!(status.success());
            let ended = Instant::now();
            tokio::time::sleep(span).await;
            until.set(Instant::now());
            (began, ended, largest, to.metadata().unwrap().len())
        };
        let (answers, (began, ended, largest, bytes)) = tokio::join!(
            store_load(Version::V1, relay.clients, connections, in_flight, &until),
            backup
        );
        let between = |from: Instant, to: Instant| {
            let inside = answers.iter().filter(|(at, _)| (from..to).contains(at));
            let took: Vec<_> = inside.map(|(_, took)| *took).collect();
            let worst = took.iter().max().copied().unwrap_or_default();
            (
                took.len() as f64 / (to - from).as_secs_f64(),
                worst.as_secs_f64() * 1e3,
            )
        };
        let (before, during, after) = (
            between(began - span, began),
            between(began, ended),
            between(ended, ended + span),
        );
        println!(
            "{:>4} in flight: backup of {} MiB in {:.1} s; stores/s before {:.0}, during {:.0} ({:.2}), after {:.0} ({:.2}); longest answer {:.0}, {:.0}, {:.0} ms; largest log {} MiB, at the end {} MiB",
            connections * in_flight,
            bytes >> 20,
            (ended - began).as_secs_f64(),
            before.0,
            during.0,
            during.0 / before.0,
            after.0,
            after.0 / before.0,
            before.1,
            during.1,
            after.1,
            largest >> 20,
            log_bytes() >> 20,
        );
    }
}
