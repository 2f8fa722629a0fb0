//! Who is the relay? The first thing that a client asks, and nothing else is sent before the answer is good.
//!
//! A relay's first `Welcome` only claims an id. Its answer to a `Hello` with a fresh nonce is signed by the
//! key that the id is, for this connection and for the host that was dialled; so nobody can claim the id of
//! another relay, or pass its answers on under another host name. Then the id must be the expected one: what
//! the URL names (`wss://host#id`), or what [`KnownRelays`] remember of this host.

use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::ClientError;
use super::known_relays::KnownRelays;
use super::socket::{Socket, lost, next_frame};
use crate::ids::parse_hex;
use crate::protocol::proof;
use crate::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use crate::protocol::v2::message::{Introduce, Welcome};
use crate::protocol::v2::{Answer, Request, Tag};

/// The number of our question.
const NUMBER: Option<Tag> = Tag::new(1);

/// Where a relay is, and who it must be.
pub(super) struct Expected {
    /// The host that is dialled, as proofs have it.
    pub(super) origin: Box<str>,
    /// The id in its URL.
    pub(super) pinned: Option<[u8; 32]>,
}

/// A relay's URL without the id behind its `#`, and that id.
pub(super) fn split_pin(url: &str) -> Result<(&str, Option<[u8; 32]>), ClientError> {
    let Some((url, id)) = url.split_once('#') else {
        return Ok((url, None));
    };
    match parse_hex(id) {
        Ok(id) => Ok((url, Some(id))),
        Err(_) => {
            let why = "what follows # must be the relay's id, 64 hexadecimal digits";
            Err(ClientError::Url(why.to_owned()))
        }
    }
}

/// Has the relay prove who it is; its welcome, once it is the one that is expected.
pub(super) async fn introduced(
    socket: &mut Socket,
    expected: &Expected,
    known: &Arc<dyn KnownRelays>,
) -> Result<Welcome, ClientError> {
    let nonce: [u8; 32] = rand::random();
    let hello = Request::Hello(Some(Introduce {
        nonce,
        origin: expected.origin.clone(),
    }));
    let hello = Message::Binary(encode_request(NUMBER, &hello));
    socket.send(hello).await.map_err(lost)?;
    let welcome = proven_welcome(socket).await?;
    check(&welcome, &nonce, &expected.origin)?;
    is_expected(welcome.relay_id, expected, known).await?;
    Ok(welcome)
}

/// Whether the key that the relay's id is has signed for this nonce, connection and host.
pub(super) fn check(welcome: &Welcome, nonce: &[u8; 32], origin: &str) -> Result<(), ClientError> {
    let Welcome {
        relay_id,
        challenge,
        proof: Some(signature),
        ..
    } = welcome
    else {
        return Err(ClientError::NotProven("its welcome has no proof"));
    };
    let signed = proof::v2_welcome(relay_id, nonce, challenge, origin);
    match proof::v2_is_welcome(relay_id, &signed, signature) {
        true => Ok(()),
        false => Err(ClientError::NotProven("the signature is wrong")),
    }
}

async fn is_expected(
    relay_id: [u8; 32],
    expected: &Expected,
    known: &Arc<dyn KnownRelays>,
) -> Result<(), ClientError> {
    let origin = expected.origin.clone();
    match expected.pinned {
        Some(pinned) if pinned == relay_id => Ok(()),
        Some(pinned) => Err(ClientError::WrongRelay {
            origin: origin.into(),
            expected: pinned,
            found: relay_id,
            says: "the relay's URL".to_owned(),
        }),
        None => {
            // They may lie in a file.
            let known = Arc::clone(known);
            let meeting = tokio::task::spawn_blocking(move || known.meet(&origin, &relay_id));
            meeting.await.map_err(|_| ClientError::Finished)?
        }
    }
}

/// Waits for the answer to our question. The first welcome is a claim, which is not looked at.
async fn proven_welcome(socket: &mut Socket) -> Result<Welcome, ClientError> {
    loop {
        let frame = next_frame(socket, "the relay sent no Welcome").await?;
        let said = decode_server_frame(&frame).map_err(|bad| ClientError::Protocol(bad.0))?;
        match said {
            ServerFrame::Known {
                answers: NUMBER,
                answer: Answer::Welcome(welcome),
            } => return Ok(*welcome),
            ServerFrame::Known {
                answers: NUMBER,
                answer: Answer::Refused(refused),
            } => {
                return Err(ClientError::Refused {
                    code: refused.code.to_owned(),
                    message: refused.message.into_owned(),
                    retry_after: refused.retry_after,
                });
            }
            ServerFrame::Known {
                answers: None,
                answer: Answer::GoAway(go_away),
            } => return Err(turned_away(go_away.reconnect_after)),
            ServerFrame::Known {
                answers: None,
                answer: Answer::Welcome(_),
            }
            | ServerFrame::Unknown { answers: None } => {}
            _ => return Err(ClientError::Protocol("the relay did not answer Hello")),
        }
    }
}

/// It is about to stop; nothing is asked of it any more.
fn turned_away(after: Duration) -> ClientError {
    ClientError::Refused {
        code: super::request::SHUTTING_DOWN.to_owned(),
        message: "the relay is shutting down".to_owned(),
        retry_after: Some(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_the_relay_s_id() {
        let id = "ab".repeat(32);
        let pinned = format!("wss://relay.example/path#{id}");
        let (url, found) = split_pin(&pinned).unwrap();
        assert_eq!((url, found), ("wss://relay.example/path", Some([0xab; 32])));
        assert_eq!(split_pin("ws://a:1").unwrap(), ("ws://a:1", None));
        for wrong in ["ws://a#", "ws://a#ab", "ws://a#a#b"] {
            assert!(
                matches!(split_pin(wrong), Err(ClientError::Url(_))),
                "{wrong}"
            );
        }
    }
}
