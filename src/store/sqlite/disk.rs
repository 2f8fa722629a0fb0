//! How much room the disk has for new blobs.
//!
//! Deletions need room too (for the log, and again when that is moved into the database), so new
//! blobs are refused while there is still some left. Looked at between commits, not per blob.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::filesystem;

/// Between two looks. A second of the fastest senders is far less than `RELAY_MIN_FREE_BYTES`.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Watches the free space of the disk that a directory is on.
pub(super) struct DiskWatch {
    data_dir: PathBuf,
    free_bytes_min: u64,
    read: fn(&Path) -> io::Result<u64>,
    looked_at: Option<Instant>,
    has_room: bool,
}

impl DiskWatch {
    pub(super) fn new(data_dir: &Path, free_bytes_min: u64) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            free_bytes_min,
            read: filesystem::free_bytes,
            looked_at: None,
            has_room: true,
        }
    }

    /// As of the last look.
    pub(super) fn has_room(&self) -> bool {
        self.has_room
    }

    /// Looks, if the last look is a while ago.
    pub(super) async fn look(&mut self) {
        let is_fresh = self.looked_at.is_some_and(|at| at.elapsed() < LOOK_PAUSE);
        if is_fresh || self.free_bytes_min == 0 {
            return;
        }
        self.looked_at = Some(Instant::now());
        let (read, data_dir) = (self.read, self.data_dir.clone());
        let looked = tokio::task::spawn_blocking(move || read(&data_dir)).await;
        let Ok(Ok(free)) = looked else {
            // A disk that cannot even be asked will say so at the next write.
            return;
        };
        let has_room = free >= self.free_bytes_min;
        if self.has_room && !has_room {
            let min = self.free_bytes_min;
            warn!(
                "store: {}: {free} bytes are free, less than RELAY_MIN_FREE_BYTES ({min}). New blobs are refused until space is free; delivery continues.",
                self.data_dir.display()
            );
        } else if !self.has_room && has_room {
            info!("store: the disk has free space again; new blobs are accepted.");
        }
        self.has_room = has_room;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    static FREE: AtomicU64 = AtomicU64::new(100);

    #[tokio::test(start_paused = true)]
    async fn room_goes_and_comes_back_by_itself() {
        let mut watch = DiskWatch::new(Path::new("/"), 100);
        watch.read = |_| Ok(FREE.load(Ordering::SeqCst));
        watch.look().await;
        assert!(watch.has_room());
        FREE.store(99, Ordering::SeqCst);
        watch.look().await;
        assert!(watch.has_room(), "at most one look a second");
        tokio::time::advance(LOOK_PAUSE).await;
        watch.look().await;
        assert!(!watch.has_room());
        FREE.store(100, Ordering::SeqCst);
        tokio::time::advance(LOOK_PAUSE).await;
        watch.look().await;
        assert!(watch.has_room());
    }
}
