//! Shows how full the disk of the data directory is, and how large the log of the database.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::filesystem;
use crate::metrics::Metrics;
use crate::store::sqlite::{DATABASE_FILE, LOG_FILE};

/// Rest between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// From here on the log is called large: it is moved into the database at 5.5 MiB, and keeps up to 64 MiB.
const LOG_LARGE: u64 = 256 << 20;

/// Between two log lines about it.
const WARNING_PAUSE: Duration = Duration::from_secs(600);

/// What a look sees.
struct Seen {
    free: u64,
    log_bytes: u64,
    /// Processes beside this one that have the database open, where the log is large.
    others: Vec<String>,
}

/// Looks for ever.
pub(super) async fn watch_for_ever(data_dir: PathBuf, metrics: Arc<Metrics>) {
    let mut warned_at: Option<Instant> = None;
    loop {
        let folder = data_dir.clone();
        if let Ok(Ok(seen)) = tokio::task::spawn_blocking(move || look(&folder)).await {
            metrics.disk_free_bytes.set(seen.free as f64);
            metrics.database_log_bytes.set(seen.log_bytes as f64);
            let is_news = warned_at.is_none_or(|at| at.elapsed() > WARNING_PAUSE);
            if seen.log_bytes >= LOG_LARGE && is_news {
                warned_at = Some(Instant::now());
                tracing::warn!("{}", warning(&data_dir, &seen));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn look(data_dir: &Path) -> io::Result<Seen> {
    let log = std::fs::metadata(data_dir.join(LOG_FILE));
    let log_bytes = log.map_or(0, |log| log.len());
    let others = match log_bytes >= LOG_LARGE {
        true => filesystem::open_elsewhere(&data_dir.join(DATABASE_FILE)),
        false => Vec::new(),
    };
    Ok(Seen {
        free: filesystem::free_bytes(data_dir)?,
        log_bytes,
        others,
    })
}

fn warning(data_dir: &Path, seen: &Seen) -> String {
    let others = match seen.others.is_empty() {
        true => "no other process that this user can see".to_owned(),
        false => seen.others.join(", "),
    };
    format!(
        "{} has grown to {} MiB, because something has been reading the database for long: a backup, or a shell (sqlite3) with an open transaction. Open in: {others}. End it, and the log shrinks by itself",
        data_dir.join(LOG_FILE).display(),
        seen.log_bytes >> 20
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_told_with_its_size_and_who_may_hold_it() {
        let seen = Seen {
            free: 0,
            log_bytes: 300 << 20,
            others: vec!["sqlite3 (process 12)".to_owned()],
        };
        let line = warning(Path::new("/data"), &seen);
        assert!(
            line.starts_with("/data/relay.db-wal has grown to 300 MiB"),
            "{line}"
        );
        assert!(line.contains("Open in: sqlite3 (process 12)."), "{line}");
    }
}
