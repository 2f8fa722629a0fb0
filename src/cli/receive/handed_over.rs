//! When is what was written to standard output in safe hands?
//!
//! The relay deletes a blob that is acknowledged, so "the system has taken the bytes" is too early: a
//! pipe holds 64 KiB that are lost when its reader ends, and a file is lost with the power until it is
//! on the disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::ioctl_fionread;

/// Between two looks into a pipe, the first and the longest.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Returns when all that was written to `output` is on the disk, if it is a file, or has been read, if it is
/// a pipe. Waits as long as the pipe has a reader, and is an error when it has none. Terminals, sockets
/// and devices are believed.
pub(super) async fn handed_over(output: impl AsFd) -> io::Result<()> {
    let kind = FileType::from_raw_mode(fstat(&output)?.st_mode);
    match kind {
        FileType::RegularFile => {
            let file = File::from(output.as_fd().try_clone_to_owned()?);
            tokio::task::spawn_blocking(move || file.sync_data()).await?
        }
        FileType::Fifo => read_from(output.as_fd()).await,
        _ => Ok(()),
    }
}

async fn read_from(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let mut pause = LOOK_PAUSE;
    while ioctl_fionread(pipe)? > 0 {
        if !has_reader(pipe)? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_PAUSE_MAX);
    }
    Ok(())
}

fn has_reader(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let mut looked_at = [PollFd::from_borrowed_fd(pipe, PollFlags::OUT)];
    poll(&mut looked_at, Some(&Timespec::default()))?;
    Ok(!looked_at[0].revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[tokio::test]
    async fn a_pipe_is_waited_for_until_it_is_read_and_no_longer_than_there_is_a_reader() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        handed_over(&writer).await.unwrap();
        writer.write_all(b"one").unwrap();
        let waiting = tokio::time::timeout(LOOK_PAUSE * 20, handed_over(&writer));
        assert!(waiting.await.is_err(), "nobody has read it");
        reader.read_exact(&mut [0; 3]).unwrap();
        handed_over(&writer).await.unwrap();
        writer.write_all(b"two").unwrap();
        drop(reader);
        let error = handed_over(&writer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_file_is_on_the_disk_and_a_device_is_believed() {
        handed_over(tempfile::tempfile().unwrap()).await.unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        handed_over(null).await.unwrap();
    }
}
