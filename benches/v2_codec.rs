//! What a v2 frame costs to read and to write, beside the v1 frame with the same blob.
//!
//! A blob is random; it is submitted by a client and delivered by the relay. The bytes of each frame
//! are printed first.

#![expect(
    clippy::print_stdout,
    reason = "a measurement is for whoever started it"
)]

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::v1::client::{self as v1_client, ClientRequest};
use vauchi_relay::protocol::v1::message::Delivery;
use vauchi_relay::protocol::v2::client as v2_client;
use vauchi_relay::protocol::v2::message::{BlobDelivery, Submit, SubmitTerms};
use vauchi_relay::protocol::{v1, v2};

const BODY_BYTES: [usize; 3] = [256, 1024, 64 * 1024];
const NOW: Timestamp = Timestamp::from_millis(1_795_220_095_000);
const MAILBOX: MailboxId = MailboxId::from_bytes([0x5a; 32]);
const BLOB: BlobId = BlobId::from_bytes([0xab; 16]);

fn main() {
    println!("bytes on the wire: body, submit v1 and v2, delivery v1 and v2");
    for length in BODY_BYTES {
        println!(
            "{length} {} {} {} {}",
            submit_v1(length).len(),
            submit_v2(length).len(),
            v1::encode(None, &delivery_v1(length), NOW).len(),
            v2::encode(None, &delivery_v2(length)).len(),
        );
    }
    divan::main();
}

/// Bytes that no branch predictor knows and that are the same in every run.
fn body(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn submit_v1(length: usize) -> Bytes {
    let tag = v1::Tag::new("11111111-1111-4111-8111-111111111111");
    let submit = ClientRequest::Submit {
        recipient: MAILBOX,
        body: &body(length),
    };
    v1_client::encode_request(&tag, submit, NOW)
}

fn submit_v2(length: usize) -> Bytes {
    let submit = v2::Request::Submit(Submit {
        recipient: MAILBOX,
        id: BLOB,
        terms: SubmitTerms::default(),
        body: body(length),
    });
    v2_client::encode_request(v2::Tag::new(1_000), &submit)
}

fn delivery_v1(length: usize) -> v1::Answer {
    v1::Answer::Delivery(Delivery {
        id: BLOB,
        mailbox_as_spelt: MAILBOX.to_hex().into(),
        sender_id: None,
        body: body(length),
    })
}

fn delivery_v2(length: usize) -> v2::Answer {
    v2::Answer::Blob(BlobDelivery {
        id: BLOB,
        mailbox: MAILBOX,
        stored_at: NOW,
        expires_at: Some(NOW),
        redelivered: false,
        body: body(length),
    })
}

#[divan::bench(args = BODY_BYTES)]
fn decode_v1(bencher: Bencher<'_, '_>, length: usize) {
    let frame = submit_v1(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v1::decode(black_box(&frame)));
}

#[divan::bench(args = BODY_BYTES)]
fn decode_v2(bencher: Bencher<'_, '_>, length: usize) {
    let frame = submit_v2(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v2::decode(black_box(&frame)));
}

#[divan::bench(args = BODY_BYTES)]
fn encode_v1(bencher: Bencher<'_, '_>, length: usize) {
    let delivery = delivery_v1(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v1::encode(None, black_box(&delivery), NOW));
}

#[divan::bench(args = BODY_BYTES)]
fn encode_v2(bencher: Bencher<'_, '_>, length: usize) {
    let delivery = delivery_v2(length);
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| v2::encode(None, black_box(&delivery)));
}
