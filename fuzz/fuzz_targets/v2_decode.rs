//! Any bytes as a v2 frame, to the relay and to a client: never a panic, and what was understood is
//! understood the same when it is said again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use vauchi_relay::protocol::v2::client::{ServerFrame, decode_server_frame, encode_request};
use vauchi_relay::protocol::v2::{self, Incoming};

fuzz_target!(|bytes: &[u8]| {
    // As they come, and after a number, without which few requests are looked at.
    let numbered = [&[0x08, 7], bytes].concat();
    for frame in [bytes, &numbered] {
        let frame = Bytes::copy_from_slice(frame);
        v2::tag_of(&frame);
        ask_again(&frame);
        say_again(&frame);
    }
});

fn ask_again(frame: &Bytes) {
    let read = v2::decode(frame);
    if let Incoming::Request { tag, request } = &read {
        assert_eq!(v2::decode(&encode_request(*tag, request)), read);
    }
    if let Incoming::Unsupported { tag } = &read {
        assert!(tag.is_some());
    }
}

fn say_again(frame: &Bytes) {
    if let Ok(ServerFrame::Known { answers, answer }) = decode_server_frame(frame) {
        // A word for a code that is not known is the same word for another number.
        let once = decode_server_frame(&v2::encode(answers, &answer));
        let Ok(ServerFrame::Known { answers, answer }) = &once else {
            panic!("what was written anew is not understood")
        };
        assert_eq!(decode_server_frame(&v2::encode(*answers, answer)), once);
    }
}
