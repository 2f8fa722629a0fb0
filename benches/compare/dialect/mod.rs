//! What a client says to each server: bytes in, bytes out, without sockets and clocks.

pub mod mqtt;
pub mod nats;
pub mod resp;
pub mod v1;
pub mod v2;
mod websocket;

use crate::mailbox::{Body, Mailbox};

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The handshake is done, and the mailbox, if any, is open.
    Open,
    /// The oldest unanswered store is answered.
    Stored,
    /// The blob with this stamp has come.
    Blob(u64),
    /// So many acknowledged blobs are gone.
    Gone(usize),
}

/// One connection's side of a protocol. Every error is a server that refused, or said what it must not.
pub trait Dialect {
    /// The client's first bytes.
    fn greet(&mut self, out: &mut Vec<u8>);

    fn store(&mut self, to: &Mailbox, body: Body<'_>, out: &mut Vec<u8>);

    /// Reads as many whole frames as there are; returns how many bytes they had.
    fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        heard: &mut Vec<Heard>,
    ) -> Result<usize, String>;

    /// Acknowledges every blob that has come since the last time.
    fn acknowledge(&mut self, out: &mut Vec<u8>);

    /// Has the server say that all acknowledgements so far are done, if it does not say so by itself.
    fn settle(&mut self, _out: &mut Vec<u8>) {}

    /// Ends the connection, where the protocol has a word for it.
    fn leave(&mut self, _out: &mut Vec<u8>) {}
}
