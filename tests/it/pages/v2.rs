//! `docs/write-a-client.md`: its test vectors are what the relay computes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ed25519_dalek::{Signer as _, SigningKey};
use vauchi_relay::client::MailboxKey;
use vauchi_relay::identity::Identity;
use vauchi_relay::ids::{BlobId, MailboxId, parse_hex};
use vauchi_relay::protocol::proof;

/// The values that the page shows, by their names.
fn vectors() -> HashMap<String, String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/write-a-client.md");
    let page = fs::read_to_string(page).unwrap();
    let mut shown = HashMap::new();
    for block in page.split("```text\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            let earlier = shown.insert(name.to_owned(), value.to_owned());
            assert_eq!(earlier, None, "{name} is there twice");
        }
    }
    shown
}

fn bytes(vectors: &HashMap<String, String>, name: &str) -> [u8; 32] {
    parse_hex(&vectors[name]).unwrap_or_else(|_| panic!("{name} is not 32 bytes"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_page_s_signatures_are_over_what_is_checked() {
    let shown = vectors();
    let key = SigningKey::from_bytes(&bytes(&shown, "private key"));
    let mailbox = MailboxId::from_bytes(key.verifying_key().to_bytes());
    assert_eq!(shown["mailbox"], hex(mailbox.as_bytes()));
    let relay = Identity::from_seed(&bytes(&shown, "relay's private key"));
    let (relay_id, challenge) = (*relay.id(), bytes(&shown, "challenge"));
    assert_eq!(shown["relay id"], hex(&relay_id));
    let nonce = bytes(&shown, "nonce");
    let signed = proof::v2_welcome(&relay_id, &nonce, &challenge, &shown["origin"]);
    assert_eq!(shown["signed by the relay"], hex(&signed));
    assert_eq!(shown["proof"], hex(&relay.sign(&signed)));
    let signed = proof::v2_subscribe(&relay_id, &challenge, &shown["origin"], &mailbox);
    assert_eq!(shown["signed"], hex(&signed));
    assert_eq!(shown["signature"], hex(&key.sign(&signed).to_bytes()));
}

#[test]
fn the_page_s_keys_make_the_mailbox_and_the_blob_id_that_it_shows() {
    let shown = vectors();
    let shared = bytes(&shown, "shared key");
    let derived = MailboxKey::derived(&shared, shown["epoch"].parse().unwrap());
    let private = bytes(&shown, "private key of shared key and epoch");
    assert!(derived.mailbox() == MailboxKey::ed25519(private).mailbox());
    let mailbox = &shown["mailbox of shared key and epoch"];
    assert_eq!(*mailbox, derived.mailbox().to_hex());
    let mailbox = MailboxId::from_bytes(bytes(&shown, "mailbox of the blob"));
    let secret = bytes(&shown, "blob secret");
    assert_eq!(shown["extend key"], hex(&proof::v2_extend_key(&secret)));
    let id = proof::v2_blob_id(&mailbox, &secret);
    let expected = parse_hex(&shown["blob id"]).unwrap();
    assert!(id == BlobId::from_bytes(expected));
}

#[test]
fn the_protocol_page_names_every_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol-v2.md");
    let page = fs::read_to_string(page).unwrap();
    for code in vauchi_relay::service::refusal::Refusal::CODES {
        let row = format!("| [{}](errors.md#{code}) |", code.to_uppercase());
        assert!(page.contains(&row), "{row}");
    }
}
