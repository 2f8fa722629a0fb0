//! Padding: blobs of a few sizes only, so that a size tells little.
//!
//! What is added stands outside of your encryption. It hides sizes from who watches the line or sees
//! only sizes, as an operator of a disk does; a relay that looks into blobs can tell it apart. Who
//! wants to hide sizes from the relay, too, calls [`pad`] before encrypting and [`unpad`] after
//! decrypting.
//!
//! ```
//! use bytes::Bytes;
//! use vauchi_relay::client::pad::{pad, unpad};
//!
//! let padded = pad(Bytes::from_static(b"hello"), usize::MAX);
//! assert_eq!(padded.len(), 256);
//! assert_eq!(unpad(padded), "hello");
//! ```
//!
//! The form: the blob, zeros, the number of bytes that were added (4 bytes, big-endian), `VPAD`.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Sizes of padded blobs; above the last, its multiples.
const BUCKETS: [usize; 5] = [256, 1 << 10, 4 << 10, 16 << 10, LARGEST];
const LARGEST: usize = 64 << 10;

const MARK: &[u8; 4] = b"VPAD";
/// The number and the mark.
const TRAILER_BYTES: usize = 8;

/// The blob, made as long as the next of 256 B, 1, 4, 16, 64 KiB, 128 KiB and so on, or as `bytes_max`
/// where that is less. Left as it is where not even the trailer fits.
pub fn pad(blob: Bytes, bytes_max: usize) -> Bytes {
    let least = blob.len() + TRAILER_BYTES;
    let bucket = BUCKETS.into_iter().find(|size| *size >= least);
    let size = bucket
        .unwrap_or_else(|| least.next_multiple_of(LARGEST))
        .min(bytes_max);
    let added = size.saturating_sub(blob.len());
    let Ok(number) = u32::try_from(added) else {
        return blob;
    };
    if added < TRAILER_BYTES {
        return blob;
    }
    let mut padded = BytesMut::with_capacity(size);
    padded.extend_from_slice(&blob);
    padded.put_bytes(0, added - TRAILER_BYTES);
    padded.put_u32(number);
    padded.extend_from_slice(MARK);
    padded.freeze()
}

/// The blob without its padding; one that has none stays as it is.
pub fn unpad(blob: Bytes) -> Bytes {
    match added_to(&blob) {
        Some(added) => blob.slice(..blob.len() - added),
        None => blob,
    }
}

fn added_to(blob: &[u8]) -> Option<usize> {
    let (rest, number) = blob.strip_suffix(MARK)?.split_last_chunk::<4>()?;
    let added = usize::try_from(u32::from_be_bytes(*number)).ok()?;
    let kept = blob.len().checked_sub(added)?;
    let zeros = rest.get(kept..)?;
    zeros.iter().all(|byte| *byte == 0).then_some(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_goes_to_its_bucket_and_comes_back() {
        for (bytes, padded_bytes) in [
            (0, 256),
            (248, 256),
            (249, 1_024),
            (4_088, 4_096),
            (16_000, 16_384),
            (65_528, 65_536),
            (65_529, 131_072),
        ] {
            let blob = Bytes::from(vec![0; bytes]);
            let padded = pad(blob.clone(), usize::MAX);
            assert_eq!(padded.len(), padded_bytes);
            assert_eq!(unpad(padded), blob);
        }
    }

    #[test]
    fn a_relay_that_takes_less_gets_less_and_what_has_no_room_stays_bare() {
        let blob = Bytes::from(vec![7; 1_000]);
        let padded = pad(blob.clone(), 1_010);
        assert_eq!(padded.len(), 1_010);
        assert_eq!(unpad(padded), blob);
        for bytes_max in [0, 999, 1_000, 1_007] {
            assert_eq!(pad(blob.clone(), bytes_max), blob);
        }
    }

    #[test]
    fn what_was_never_padded_stays_as_it_is() {
        for blob in [
            &b""[..],
            b"VPAD",
            b"\0\0\0\x07VPAD",
            b"\xff\xff\xff\xffVPAD",
            b"x\x01\0\0\0\x09VPADx",
            b"not zero\x01\0\0\0\x09VPAD",
        ] {
            assert_eq!(unpad(Bytes::from_static(blob)), blob);
        }
    }
}
