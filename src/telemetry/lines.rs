//! Lines of the log on their way to standard error, which no thread waits for.
//!
//! Standard error is often a pipe to another program, and a pipe holds 64 KiB. Once that program stops
//! reading, every write waits, and after a few lines no thread of the relay is left to serve anybody. So
//! a line is written only where there is room for it. Otherwise it is dropped and counted.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A pipe that has room takes so much at once without waiting (`PIPE_BUF`).
const PIECE_BYTES: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// How long the first line without room waits for a reader that is only slow. The next ones do not wait.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Where lines go.
#[derive(Debug)]
pub struct Lines<W> {
    to: W,
    /// Locked while a line is written: the room that was seen must not go to another line.
    state: Mutex<State>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The last line was dropped.
    is_stuck: bool,
    /// The last line was dropped when its beginning was already written.
    is_torn: bool,
}

impl<W: AsFd> Lines<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            state: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Writes a line, or drops it.
    pub(super) fn put(&self, line: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = if state.is_stuck { AT_ONCE } else { PATIENCE };
        let mend: &[u8] = if state.is_torn { b"\n" } else { b"" };
        let pieces = mend.chunks(1).chain(line.chunks(PIECE_BYTES));
        state.is_stuck = false;
        for piece in pieces {
            if !self.put_piece(piece, &patience) {
                state.is_stuck = true;
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Until the end has been written.
            state.is_torn = true;
        }
        state.is_torn = false;
    }

    /// Whether the piece was written. What cannot be written for another reason than room counts as written:
    /// there is nowhere to say so.
    fn put_piece(&self, mut piece: &[u8], patience: &Timespec) -> bool {
        while !piece.is_empty() {
            if !self.has_room_within(patience) {
                return false;
            }
            match rustix::io::write(&self.to, piece) {
                Ok(written) => piece = piece.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
        true
    }

    /// Whether a line would be written now.
    pub fn has_room(&self) -> bool {
        self.has_room_within(&AT_ONCE)
    }

    fn has_room_within(&self, patience: &Timespec) -> bool {
        let mut looked_at = [PollFd::new(&self.to, PollFlags::OUT)];
        poll(&mut looked_at, Some(patience)) != Ok(0)
    }

    /// How many lines were dropped since this was asked last.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

/// For the subscriber, which writes each line at once.
impl<W: AsFd> io::Write for &Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read as _};

    use super::*;

    fn read(reader: &mut PipeReader, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        reader.read_exact(&mut read).unwrap();
        read
    }

    /// Puts lines until one is dropped; how many were not.
    fn fill(lines: &Lines<io::PipeWriter>, line: &[u8]) -> usize {
        (0..)
            .take_while(|_| {
                lines.put(line);
                lines.take_dropped() == 0
            })
            .count()
    }

    #[test]
    fn a_line_without_room_is_dropped_and_the_next_with_room_is_written() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::new(writer);
        let line = [b'a'; PIECE_BYTES];
        let written = fill(&lines, &line);
        assert!(!lines.has_room());
        for _ in 0..3 {
            lines.put(&line);
        }
        assert_eq!(lines.take_dropped(), 3);

        assert_eq!(
            read(&mut reader, written * line.len()),
            line.repeat(written)
        );
        lines.put(b"again\n");
        assert_eq!(
            (read(&mut reader, 6), lines.take_dropped()),
            (b"again\n".to_vec(), 0)
        );
    }

    #[test]
    fn a_line_that_broke_off_does_not_run_into_the_next() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::new(writer);
        let piece = [b'a'; PIECE_BYTES];
        let written = fill(&lines, &piece);
        // Room for one piece of three.
        read(&mut reader, PIECE_BYTES);
        lines.put(&piece.repeat(3));
        assert_eq!(lines.take_dropped(), 1);
        read(&mut reader, written * PIECE_BYTES);
        lines.put(b"whole\n");
        assert_eq!(read(&mut reader, 7), b"\nwhole\n");
    }

    #[test]
    fn a_reader_that_is_gone_stops_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::new(writer);
        drop(reader);
        lines.put(b"to nobody\n");
        assert!(lines.has_room());
    }
}
