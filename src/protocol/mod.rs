//! What travels: values and bytes. No socket, no clock, no rule.
//!
//! The exchange, in v1: the client's first frame is a handshake; the relay answers with a welcome and
//! sends what waits in the mailbox, then what comes. The client submits blobs, each answered `Stored`
//! or refused, and acknowledges deliveries, which is not answered. It ends with a close frame.
//!
//! In v2 the relay speaks first, a submit needs no handshake, and one connection opens many mailboxes.
//!
//! - [`message`]: the values that are the same in both
//! - [`v1`]: Vauchi's length-prefixed JSON
//! - [`v2`]: protobuf after `proto/relay.proto`
//! - [`proof`]: the exact bytes that are signed
//! - [`close`]: how a connection ends

/// Which protocol a connection speaks; the upgrade request settles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Vauchi's length-prefixed JSON: no subprotocol was offered.
    V1,
    /// [`v2::SUBPROTOCOL`] was among those that were offered.
    V2,
}

pub mod close;
pub mod message;
pub mod proof;
pub mod v1;
pub mod v2;
