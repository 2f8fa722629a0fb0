//! What a v1 frame costs to read and to write: ours beside serde_json.
//!
//! serde_json stands for the obvious way: an internally tagged enum with `Vec<u8>`. Frames are an
//! EncryptedUpdate with a random body, as clients send it and as it is delivered.

#![expect(
    clippy::expect_used,
    reason = "a measurement that cannot go on has nothing better to do"
)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use serde::{Deserialize, Serialize};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::v1::message::Delivery;
use vauchi_relay::protocol::v1::{self, Answer, Incoming, Request};

const BODY_BYTES: [usize; 3] = [256, 1024, 64 * 1024];
const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);
const BLOB: [u8; 16] = [0xab; 16];
const BLOB_AS_SPELT: &str = "abababab-abab-abab-abab-abababababab";

fn main() {
    divan::main();
}

/// The frame as serde sees it.
#[derive(Serialize, Deserialize)]
struct Plain {
    version: u8,
    message_id: String,
    timestamp: u64,
    payload: PlainPayload,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type")]
enum PlainPayload {
    EncryptedUpdate {
        recipient_id: String,
        ciphertext: Vec<u8>,
    },
    Acknowledgment {
        message_id: String,
        status: String,
    },
}

/// Bytes that no branch predictor knows and that are the same in every run.
fn body(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn mailbox_as_spelt() -> String {
    MailboxId::from_bytes([0x5a; 32]).to_hex()
}

fn delivery(length: usize) -> Answer {
    Answer::Delivery(Delivery {
        id: BlobId::from_bytes(BLOB),
        mailbox_as_spelt: mailbox_as_spelt().into(),
        sender_id: None,
        body: body(length).into(),
    })
}

fn plain(length: usize) -> Plain {
    Plain {
        version: 1,
        message_id: BLOB_AS_SPELT.to_owned(),
        timestamp: NOW.secs(),
        payload: PlainPayload::EncryptedUpdate {
            recipient_id: mailbox_as_spelt(),
            ciphertext: body(length),
        },
    }
}

fn write_plain(plain: &Plain) -> Vec<u8> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, plain).expect("writing to memory");
    let length = frame.len() as u32 - 4;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

fn read_plain(frame: &[u8]) -> Plain {
    serde_json::from_slice(&frame[4..]).expect("our own frame")
}

/// The same frame from both sides, or the comparison says nothing.
fn frame(length: usize) -> Vec<u8> {
    let ours = v1::encode(None, &delivery(length), NOW);
    assert_eq!(ours, write_plain(&plain(length)));
    let Incoming::Request {
        request: Request::Submit(submit),
        ..
    } = v1::decode(&ours)
    else {
        panic!("not a submit")
    };
    assert_eq!(submit.body, body(length));
    ours.to_vec()
}

#[divan::bench(args = BODY_BYTES)]
fn decode_ours(bencher: Bencher<'_, '_>, length: usize) {
    let frame = frame(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v1::decode(black_box(&frame)));
}

#[divan::bench(args = BODY_BYTES)]
fn decode_serde_json(bencher: Bencher<'_, '_>, length: usize) {
    let frame = frame(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| read_plain(black_box(&frame)));
}

#[divan::bench(args = BODY_BYTES)]
fn encode_ours(bencher: Bencher<'_, '_>, length: usize) {
    let delivery = delivery(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v1::encode(None, black_box(&delivery), NOW));
}

#[divan::bench(args = BODY_BYTES)]
fn encode_serde_json(bencher: Bencher<'_, '_>, length: usize) {
    let plain = plain(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| write_plain(black_box(&plain)));
}
