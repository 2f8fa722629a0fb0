//! The types that the build makes from `proto/relay.proto`, and how their fields become ours.
//!
//! They do not leave this folder: the values that travel further have their lengths checked.

use std::time::Duration;

use bytes::Bytes;

pub(super) use generated::*;

#[expect(
    unreachable_pub,
    reason = "made by prost-build; the comments are in the schema"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/vauchi.relay.v2.rs"));
}

/// A field of exactly `N` bytes.
pub(super) fn exactly<const N: usize>(
    field: &Bytes,
    why: &'static str,
) -> Result<[u8; N], &'static str> {
    field.as_ref().try_into().map_err(|_| why)
}

/// A field that may be left out, which is the same as empty.
pub(super) fn optional<const N: usize>(
    field: &Bytes,
    why: &'static str,
) -> Result<Option<[u8; N]>, &'static str> {
    if field.is_empty() {
        return Ok(None);
    }
    exactly(field, why).map(Some)
}

/// A field of its own from the bytes of an id or a key.
pub(super) fn field(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// A count as the wire has it: the largest one when there are more.
pub(super) fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Whole seconds as the wire has them.
pub(super) fn seconds(span: Duration) -> u32 {
    count(span.as_secs())
}

/// Whole milliseconds as the wire has them.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
