//! `docs/write-a-client.md`: its test vectors are what the relay computes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ed25519_dalek::{Signer as _, SigningKey};
use vauchi_relay::client::MailboxKey;
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
fn the_page_s_signature_is_over_what_the_relay_checks() {
    let shown = vectors();
    let key = SigningKey::from_bytes(&bytes(&shown, "private key"));
    let mailbox = MailboxId::from_bytes(key.verifying_key().to_bytes());
    assert_eq!(shown["mailbox"], hex(mailbox.as_bytes()));
    let (relay_id, challenge) = (bytes(&shown, "relay id"), bytes(&shown, "challenge"));
    let signed = proof::v2_subscribe(&relay_id, &challenge, &shown["origin"], &mailbox);
    assert_eq!(shown["signed"], hex(&signed));
    assert_eq!(shown["signature"], hex(&key.sign(&signed).to_bytes()));
}

#[test]
fn the_page_s_secrets_make_the_mailbox_and_the_blob_id_that_it_shows() {
    let shown = vectors();
    let mailbox = proof::v2_secret_mailbox(&bytes(&shown, "secret"));
    assert_eq!(shown["mailbox of the secret"], hex(mailbox.as_bytes()));
    let (key, relay_id) = (bytes(&shown, "shared key"), bytes(&shown, "relay id"));
    let derived = MailboxKey::derived(&key, shown["epoch"].parse().unwrap(), &relay_id);
    let secret = bytes(&shown, "secret of shared key, epoch and relay id");
    assert!(derived.mailbox() == proof::v2_secret_mailbox(&secret));
    let mailbox = MailboxId::from_bytes(bytes(&shown, "mailbox of the blob"));
    let id = proof::v2_blob_id(&mailbox, &bytes(&shown, "blob secret"));
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
