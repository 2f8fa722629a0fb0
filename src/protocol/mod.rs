//! What travels: values and bytes. No socket, no clock, no rule.
//!
//! The exchange, in v1: the client's first frame is a handshake; the relay answers with a welcome and
//! sends what waits in the mailbox, then what comes. The client submits blobs, each answered `Stored`
//! or refused, and acknowledges deliveries, which is not answered. It ends with a close frame.
//!
//! In v2 the relay speaks first, a submit needs no handshake, and one connection opens many mailboxes.
//!
//! - [`message`]: the values, the same for every version; [`message_v2`]: the parts of v2's
//! - [`v1`]: Vauchi's length-prefixed JSON, the relay's side; [`v1_client`]: the client's side
//! - `v1_request`: what each of a client's frames asks; `v1_answer`: what it is told
//! - `v1_frame`: what both sides share; `json`, `int_array`: how frames are read and written without a
//!   general parser
//! - [`v2`]: protobuf after `proto/relay.proto`, the relay's side; [`v2_client`]: the client's side
//! - `v2_request`: what each of a client's frames asks; `v2_wire`: a look at a frame before it costs
//!   anything; `v2_code`: the words for refusals; `v2_schema`: the types made from the schema
//! - [`proof`]: the exact bytes that are signed; `origin`: the host that is among them
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
mod int_array;
mod json;
pub mod message;
pub mod message_v2;
mod origin;
pub mod proof;
pub mod v1;
mod v1_answer;
pub mod v1_client;
mod v1_frame;
mod v1_request;
pub mod v2;
pub mod v2_client;
mod v2_code;
#[cfg(test)]
mod v2_properties;
mod v2_request;
#[cfg(test)]
mod v2_rules;
mod v2_schema;
mod v2_wire;
