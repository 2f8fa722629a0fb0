//! Any bytes as a v1 frame, to the relay and to a client: never a panic, and what was understood is
//! understood the same when it is handed on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vauchi_relay::clock::Timestamp;
use vauchi_relay::ids::BlobId;
use vauchi_relay::protocol::v1::message::{Delivery, DeviceSync, DeviceSyncDelivery};
use vauchi_relay::protocol::v1::{self, Answer, Incoming, Request, client};

fuzz_target!(|bytes: &[u8]| {
    // As they come, and with a prefix that is right, which few inputs have by themselves.
    let prefixed = [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    for frame in [bytes, &prefixed] {
        v1::tag_of(frame);
        drop(client::decode_server_frame(frame));
        if let Incoming::Request { request, .. } = v1::decode(frame) {
            hand_on(request);
        }
    }
});

fn hand_on(request: Request) {
    match request {
        Request::Submit(submit) => {
            let delivery = Delivery {
                id: BlobId::from_bytes([7; 16]),
                mailbox_as_spelt: submit.recipient.to_hex().into(),
                sender_id: submit.sender_id.clone(),
                body: submit.body.clone(),
            };
            assert_eq!(again(Answer::Delivery(delivery)), Request::Submit(submit));
        }
        Request::DeviceSync(sync) => assert_eq!(again(delivered(&sync)), Request::DeviceSync(sync)),
        Request::AccountRevoked(revoked) => {
            let Incoming::Request { request, .. } = v1::decode(&revoked.frame) else {
                panic!("the frame that was written anew is not understood")
            };
            assert_eq!(request, Request::AccountRevoked(revoked));
        }
        Request::Acknowledge(_)
        | Request::DeviceSyncAcknowledge(_)
        | Request::RecoveryStore(_)
        | Request::RecoveryQuery(_)
        | Request::Purge(_) => {}
    }
}

fn delivered(sync: &DeviceSync) -> Answer {
    Answer::DeviceSync(DeviceSyncDelivery {
        id: BlobId::from_bytes([7; 16]),
        identity_as_spelt: sync.identity.to_hex().into(),
        target_as_spelt: sync.target_device.to_hex().into(),
        sender_device: sync.sender_device.clone(),
        version: sync.version,
        body: sync.body.clone(),
    })
}

/// Reads what the relay writes; a delivery has the form of a request.
fn again(answer: Answer) -> Request {
    match v1::decode(&v1::encode(None, &answer, Timestamp::default())) {
        Incoming::Request { request, .. } => request,
        other => panic!("{other:?}"),
    }
}
