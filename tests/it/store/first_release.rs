//! A data directory that the release 0.1.0 wrote opens with everything in it, as its README in
//! `tests/fixtures/database-0.1/` lists it.
//!
//! Only what clients and operators see is looked at, so these tests outlive the store's code. The
//! relay's clock starts when the fixture was finished: no test here fails on some later day.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vauchi_relay::clock::Timestamp;
use vauchi_relay::clock::steady::STEADY_AFTER;
use vauchi_relay::ids::{BlobId, MailboxId};
use vauchi_relay::protocol::message::{RecoveryProof, RecoveryQuery};
use vauchi_relay::protocol::v2::message::{
    BlobDelivery, Done, ReceiptDelivery, Submit, Withdrawal, WithdrawalKind,
};
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::{Goodbye, Peer, Relay, envelope, http_get, id, value_of};
use crate::v2::client::{Guest, Owned, on_terms, submit};

const DAY: Duration = Duration::from_secs(86_400);

/// The settings that the fixture was made with.
const SETTINGS: [(&str, &str); 2] = [
    ("RELAY_BLOB_TTL_DAYS", "3650"),
    ("RELAY_RECEIPT_MIN_TTL_SECS", "60"),
];

/// A copy of the fixture, and what is in it.
struct Fixture {
    folder: tempfile::TempDir,
    expected: Value,
    /// How often a relay was started on it: time goes on from one to the next.
    starts: AtomicU32,
}

impl Fixture {
    fn copied() -> Self {
        let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/database-0.1");
        let folder = tempfile::tempdir().unwrap();
        for name in ["relay.db", "relay.secret"] {
            let file = folder.path().join(name);
            fs::copy(format!("{from}/{name}"), &file).unwrap();
            // git keeps no such mode, and the relay takes no secret that others may read.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let expected = fs::read(format!("{from}/expected.json")).unwrap();
        let expected = serde_json::from_slice(&expected).unwrap();
        let starts = AtomicU32::new(0);
        Self {
            folder,
            expected,
            starts,
        }
    }

    /// A relay on the copy that trusts its clock, at the moment when the fixture was finished.
    async fn start(&self, changes: &[(&str, &str)]) -> Relay {
        let folder = self.folder.path().display().to_string();
        let mut settings = SETTINGS.to_vec();
        settings.push(("RELAY_DATA_DIR", &folder));
        settings.push(("RELAY_CLEANUP_INTERVAL_SECS", "1"));
        settings.extend(changes);
        let now = self.expected["opened_at_ms"].as_u64().unwrap();
        let before = self.starts.fetch_add(1, Ordering::SeqCst);
        let began = Timestamp::from_millis(now).plus(STEADY_AFTER * before);
        let began = began.minus(STEADY_AFTER);
        let relay = Relay::start_at(began, &settings).await;
        relay.time.advance(STEADY_AFTER);
        relay
    }

    fn list(&self, name: &str) -> &[Value] {
        self.expected[name].as_array().unwrap()
    }

    fn count(&self, series: &str) -> f64 {
        self.expected["metrics"][series].as_f64().unwrap()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A body: a text, or a text and how often it is repeated.
fn body(value: &Value) -> Vec<u8> {
    let repeated = &value["repeated"];
    let (text, times) = match value.as_str() {
        Some(text) => (text, 1),
        None => (text(&repeated[0]), repeated[1].as_u64().unwrap()),
    };
    text.repeat(usize::try_from(times).unwrap()).into_bytes()
}

fn blob_id(value: &Value) -> BlobId {
    let hex = text(value);
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    BlobId::from_bytes(std::array::from_fn(byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A mailbox by the byte that its key is made of.
fn owned(value: &Value) -> Owned {
    let byte = |name: &str| value[name].as_u64().map(|byte| byte as u8);
    match byte("key") {
        Some(byte) => Owned::key(byte),
        None => Owned::v2_only(byte("v2_only").unwrap()),
    }
}

/// The submit that made this blob.
fn submit_of(mailbox: &MailboxId, blob: &Value) -> Submit {
    let mut submit = submit(mailbox, 0, &body(&blob["body"]));
    submit.id = blob_id(&blob["id"]);
    submit
}

/// Opens a mailbox whose senders are not told, and takes what waits in it.
async fn waiting(guest: &mut Guest, owned: &Owned) -> (Vec<BlobDelivery>, Vec<ReceiptDelivery>) {
    let quiet = guest.subscribe_to(&[owned], false);
    let opened = guest.try_subscribe(quiet).await[0].unwrap();
    let (mut blobs, mut receipts) = (Vec::new(), Vec::new());
    loop {
        match guest.receive().await {
            Answer::Blob(blob) => blobs.push(blob),
            Answer::Receipt(receipt) => receipts.push(receipt),
            Answer::CaughtUp { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(opened.pending as usize, blobs.len() + receipts.len());
    (blobs, receipts)
}

async fn device(relay: &Relay, identity: &Value, device: &str) -> Peer {
    let mut peer = Peer::connect(relay.running.clients).await;
    peer.handshake(json!({ "client_id": identity, "device_id": device }))
        .await;
    peer
}

/// Whether a v1 client may open this mailbox without a signature.
async fn opens_unsigned(relay: &Relay, mailbox: &MailboxId) -> bool {
    let mut peer = Peer::connect(relay.running.clients).await;
    peer.say_hello(json!({ "client_id": mailbox.to_hex() }))
        .await;
    match peer.next().await {
        Ok(_) => true,
        Err(Goodbye::Frame(4401, _)) => false,
        Err(other) => panic!("{other:?}"),
    }
}

/// Blobs, device sync and receipts each balance, in one scrape.
async fn expect_balance(relay: &Relay) {
    let (_, scrape) = http_get(relay.running.operators, "/metrics", &[]).await;
    for (what, doors) in [
        (
            "blobs",
            &["acknowledged", "cancelled", "replaced", "purged"][..],
        ),
        ("device_sync", &["acknowledged", "purged"]),
        ("receipts", &["acknowledged", "purged"]),
    ] {
        let value = |name: &str| value_of(&scrape, &format!("relay_{what}_{name}")).unwrap();
        let left: f64 = doors
            .iter()
            .chain(&["expired", "lost"])
            .map(|door| value(&format!("{door}_total")))
            .sum();
        let came = value("stored_at_start") + value("created_total");
        assert_eq!(came, left + value("stored"), "{what}");
    }
}

async fn expect_v1_blobs(relay: &Relay, fixture: &Fixture) {
    let mut reader = relay.client(text(&fixture.expected["v1_mailbox"])).await;
    for blob in fixture.list("v1_blobs") {
        let frame = reader.receive().await;
        let payload = &frame["payload"];
        let ciphertext: Vec<u8> = serde_json::from_value(payload["ciphertext"].clone()).unwrap();
        assert!(ciphertext == body(&blob["body"]), "{blob}");
        assert_eq!(payload["sender_id"], blob["sender_id"], "{blob}");
    }
    reader.expect_silence().await;
    // Of a mailbox with blobs of both kinds, v1 sees the one that its sender let it see.
    let mut reader = relay.client(&Owned::v2_only(2).id().to_hex()).await;
    assert_eq!(reader.delivery().await.blob, b"v1 may see it");
    reader.expect_silence().await;
}

async fn expect_v2_blobs(relay: &Relay, fixture: &Fixture) {
    let mut reader = Guest::connect(relay).await;
    assert_eq!(
        hex(&reader.welcome.relay_id),
        text(&fixture.expected["relay_id"])
    );
    for (owned, name) in [
        (Owned::key(1), "key_1_blobs"),
        (Owned::v2_only(2), "v2_only_2_blobs"),
    ] {
        let (blobs, receipts) = waiting(&mut reader, &owned).await;
        let expected = fixture.list(name);
        assert_eq!((blobs.len(), receipts.len()), (expected.len(), 0), "{name}");
        for (blob, expected) in blobs.iter().zip(expected) {
            assert_eq!(blob.id, blob_id(&expected["id"]), "{expected}");
            assert!(*blob.body == *body(&expected["body"]), "{expected}");
            assert_eq!(blob.expires_at.unwrap().millis(), expected["expires_at_ms"]);
        }
    }
    // The one was set aside as corrupt, the other has expired.
    for empty in [Owned::v2_only(8), Owned::v2_only(9)] {
        let (blobs, receipts) = waiting(&mut reader, &empty).await;
        assert_eq!((blobs.len(), receipts.len()), (0, 0));
    }
}

/// Those of the fixture, and one for the blob that had expired and was not swept yet.
async fn expect_receipts(relay: &Relay, fixture: &Fixture) {
    relay
        .metric_becomes(
            "relay_receipts_stored",
            fixture.count("relay_receipts_stored") + 1.0,
        )
        .await;
    let mut sender = Guest::connect(relay).await;
    let (blobs, receipts) = waiting(&mut sender, &Owned::v2_only(3)).await;
    assert_eq!(blobs.len(), 0);
    let told: Vec<_> = receipts
        .iter()
        .map(|receipt| (receipt.id, format!("{:?}", receipt.kind).to_lowercase()))
        .collect();
    let expected = fixture.list("v2_only_3_receipts").iter();
    let expired = &fixture.expected["expired_blob"]["id"];
    let expected: Vec<_> = expected
        .map(|receipt| (blob_id(&receipt["blob"]), text(&receipt["kind"]).to_owned()))
        .chain([(blob_id(expired), "expired".to_owned())])
        .collect();
    assert_eq!(told, expected);
    for (receipt, expected) in receipts.iter().zip(fixture.list("v2_only_3_receipts")) {
        assert_eq!(receipt.at.millis(), expected["at_ms"]);
    }
}

async fn expect_device_sync(relay: &Relay, fixture: &Fixture) {
    let expected = &fixture.expected["device_sync"];
    for (name, messages) in expected["devices"].as_object().unwrap() {
        let mut reader = device(relay, &expected["identity"], name).await;
        for message in messages.as_array().unwrap() {
            let frame = reader.receive().await;
            let payload = &frame["payload"];
            assert_eq!(payload["type"], "DeviceSyncMessage", "{frame}");
            assert_eq!(payload["version"], message["version"]);
            assert_eq!(payload["encrypted_payload"], json!(body(&message["body"])));
            assert_eq!(payload["sender_device_id"], expected["sender_device_id"]);
            assert_eq!(payload["identity_id"], expected["identity"]);
            assert_eq!(payload["target_device_id"], name.as_str());
        }
        reader.expect_silence().await;
    }
}

/// The proofs under each of these hashes, the newest first.
async fn proofs_under(relay: &Relay, hashes: &[u8]) -> Vec<(u8, String)> {
    let query = Request::RecoveryQuery(RecoveryQuery {
        key_hashes: hashes.iter().map(|byte| [*byte; 32]).collect(),
    });
    let answer = Guest::connect(relay).await.answer(query).await;
    let Answer::RecoveryFound { proofs, .. } = answer else {
        panic!("{answer:?}")
    };
    let plain = |proof: &[u8]| String::from_utf8(proof.to_vec()).unwrap();
    proofs
        .iter()
        .map(|found| (found.key_hash[0], plain(&found.proof)))
        .collect()
}

async fn expect_recovery_proofs(relay: &Relay, fixture: &Fixture) {
    for (hash, expected) in fixture.expected["recovery_proofs"].as_object().unwrap() {
        let byte = u8::from_str_radix(&hash[..2], 16).unwrap();
        assert_eq!(*hash, id(byte));
        let expected = expected.as_array().unwrap().iter();
        let expected: Vec<_> = expected
            .map(|proof| (byte, text(proof).to_owned()))
            .collect();
        assert_eq!(proofs_under(relay, &[byte]).await, expected);
    }
}

async fn expect_pins(relay: &Relay, fixture: &Fixture) {
    for pinned in fixture.list("pinned_keys") {
        assert!(
            !opens_unsigned(relay, &owned(pinned).id()).await,
            "{pinned}"
        );
    }
    let unpinned = fixture.expected["unpinned_key"].as_u64().unwrap();
    assert!(opens_unsigned(relay, &Owned::key(unpinned as u8).id()).await);
}

#[tokio::test]
async fn everything_is_there_after_the_first_start_and_after_the_second() {
    let fixture = Fixture::copied();
    let stored = fixture.count("relay_blobs_stored") - 1.0;
    for start in 1..=2 {
        let relay = fixture.start(&[]).await;
        relay.metric_becomes("relay_blobs_stored", stored).await;
        expect_v1_blobs(&relay, &fixture).await;
        expect_v2_blobs(&relay, &fixture).await;
        expect_receipts(&relay, &fixture).await;
        expect_device_sync(&relay, &fixture).await;
        expect_recovery_proofs(&relay, &fixture).await;
        expect_pins(&relay, &fixture).await;

        for series in [
            "relay_device_sync_stored",
            "relay_pins",
            "relay_recovery_proofs_active",
        ] {
            assert_eq!(relay.metric(series).await, fixture.count(series));
        }
        let remembered = fixture.count("relay_dedup_remembered") + 1.0;
        assert_eq!(relay.metric("relay_dedup_remembered").await, remembered);
        let found_expired = if start == 1 { 1.0 } else { 0.0 };
        assert_eq!(
            relay.metric("relay_blobs_stored_at_start").await,
            stored + found_expired
        );
        assert_eq!(
            relay.metric("relay_blobs_expired_total").await,
            found_expired
        );
        assert_eq!(relay.metric("relay_blobs_lost_total").await, 0.0);
        expect_balance(&relay).await;
        relay.stop().await;
    }
}

/// Each row is deleted by one of the ways that clients have, or expires; the counts end at zero.
#[tokio::test]
async fn everything_can_leave_and_nothing_is_counted_that_is_not_there() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[]).await;
    let mut v1 = relay.client(text(&fixture.expected["v1_mailbox"])).await;
    for _ in fixture.list("v1_blobs") {
        let id = v1.delivery().await.id;
        v1.acknowledge(&id).await;
    }
    let mut reader = Guest::connect(&relay).await;
    for owned in [Owned::key(1), Owned::v2_only(3)] {
        let (blobs, receipts) = waiting(&mut reader, &owned).await;
        let blobs = blobs.iter().map(|blob| blob.id);
        let ids = blobs.chain(receipts.iter().map(|receipt| receipt.receipt_id));
        let items = ids.map(|id| (owned.id(), id)).collect();
        reader.done(Request::Acknowledge(items)).await;
    }
    waiting(&mut reader, &Owned::v2_only(2)).await;
    let purge = Request::Purge(vec![Owned::v2_only(2).id()]);
    reader.answer(purge).await;
    let sync = &fixture.expected["device_sync"];
    let mut identity = relay.client(text(&sync["identity"])).await;
    let purge = json!({ "type": "PurgeRequest", "include_device_sync": true });
    identity.send(&envelope("purge", purge)).await;
    let purged = identity.receive().await;
    assert_eq!(
        purged["payload"]["device_sync_deleted"].as_f64().unwrap(),
        fixture.count("relay_device_sync_stored")
    );
    relay.metric_becomes("relay_device_sync_stored", 0.0).await;
    relay.metric_becomes("relay_blobs_stored", 0.0).await;
    expect_balance(&relay).await;

    relay.time.advance(91 * DAY);
    for series in [
        "relay_recovery_proofs_active",
        "relay_receipts_stored",
        "relay_stored_bytes",
    ] {
        relay.metric_becomes(series, 0.0).await;
    }
    expect_balance(&relay).await;
}

#[tokio::test]
async fn a_sender_hears_the_rest_and_nothing_twice() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[]).await;
    expect_receipts(&relay, &fixture).await;
    let (mut sender, own) = (Guest::connect(&relay).await, Owned::v2_only(3));
    for receipt in waiting(&mut sender, &own).await.1 {
        sender.acknowledge(own.id(), receipt.receipt_id).await;
    }
    let ids: Vec<_> = fixture
        .list("key_1_blobs")
        .iter()
        .map(|blob| blob_id(&blob["id"]))
        .collect();
    let mut owner = Guest::connect(&relay).await;
    owner.open(&Owned::key(1)).await;
    for _ in &ids {
        owner.blob().await;
    }
    owner.caught_up().await;
    // Of the second blob the sender has heard that already; of the first it did not want to hear.
    let told = sender.receipt().await;
    assert_eq!(
        (told.id, format!("{:?}", told.kind)),
        (ids[2], "Delivered".into())
    );
    for id in &ids {
        owner.acknowledge(Owned::key(1).id(), *id).await;
    }
    for id in &ids[1..] {
        let told = sender.receipt().await;
        assert_eq!(
            (told.id, format!("{:?}", told.kind)),
            (*id, "Acknowledged".into())
        );
    }
    // The blob that was extended can be taken back with the same secret.
    let cancel = Request::Withdraw(Withdrawal {
        mailbox: Owned::v2_only(2).id(),
        shown: [1; 32],
        kind: WithdrawalKind::Cancel,
    });
    assert_eq!(owner.done(cancel).await, Done::Cancelled);
    let told = sender.receipt().await;
    assert_eq!(format!("{:?}", told.kind), "Removed");
    sender.expect_nothing().await;
    expect_balance(&relay).await;
}

#[tokio::test]
async fn what_waits_and_what_has_left_is_a_duplicate_and_what_was_lost_is_not() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[]).await;
    let mut v1 = relay.client(text(&fixture.expected["v1_sender"])).await;
    let mailbox = &fixture.expected["v1_mailbox"];
    let waiting = fixture.list("v1_blobs").iter().map(|blob| (mailbox, blob));
    let departed = fixture.list("departed_v1").iter();
    let mut repeats = 0.0;
    for (to, blob) in waiting.chain(departed.map(|blob| (&blob["to"], blob))) {
        let mut payload = json!({ "type": "EncryptedUpdate", "recipient_id": to,
            "ciphertext": body(&blob["body"]) });
        if blob["sender_id"].is_string() {
            payload["sender_id"] = blob["sender_id"].clone();
        }
        let name = text(&blob["message_id"]);
        v1.send(&envelope(name, payload)).await;
        v1.expect_stored(name).await;
        repeats += 1.0;
    }
    let mut sender = Guest::connect(&relay).await;
    let key = Owned::key(1).id();
    let waiting = fixture.list("key_1_blobs").iter().map(|blob| (key, blob));
    let departed = fixture.list("departed_v2").iter();
    for (to, blob) in waiting.chain(departed.map(|blob| (owned(blob).id(), blob))) {
        assert!(sender.store(submit_of(&to, blob)).await, "{blob}");
        repeats += 1.0;
        let mut other = submit_of(&to, blob);
        other.body = "another blob".into();
        let refused = sender.refusal(Request::Submit(other)).await;
        assert_eq!(refused.code, "id_reused", "{blob}");
    }
    assert_eq!(relay.metric("relay_duplicates_total").await, repeats);
    assert_eq!(relay.metric("relay_blobs_created_total").await, 0.0);

    let lost = &fixture.expected["lost_blob"];
    let mailbox = owned(lost);
    assert!(!sender.store(submit_of(&mailbox.id(), lost)).await);
    assert_eq!(sender.open(&mailbox).await.pending, 1);
    assert!(*sender.blob().await.body == *body(&lost["body"]));
    expect_balance(&relay).await;
}

#[tokio::test]
async fn a_topic_of_the_fixture_is_replaced() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[]).await;
    let (mut guest, mailbox) = (Guest::connect(&relay).await, Owned::v2_only(2));
    let newer = submit(&mailbox.id(), 99, b"newer");
    let newer = on_terms(newer, |terms| terms.topic = Some([4; 32]));
    assert!(!guest.store(newer).await);
    assert_eq!(relay.metric("relay_blobs_replaced_total").await, 1.0);
    let (blobs, _) = waiting(&mut guest, &mailbox).await;
    assert_eq!(blobs.len(), fixture.list("v2_only_2_blobs").len());
    assert!(blobs.iter().all(|blob| *blob.body != *b"on a topic"));
    assert_eq!(*blobs.last().unwrap().body, *b"newer");
    expect_balance(&relay).await;
}

#[tokio::test]
async fn a_pin_of_the_fixture_ends_when_it_is_not_used_for_as_long_as_a_blob_may_live() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[("RELAY_BLOB_TTL_DAYS", "30")]).await;
    relay.time.advance(30 * DAY);
    expect_pins(&relay, &fixture).await;
    relay.time.advance(2 * DAY);
    for pinned in fixture.list("pinned_keys") {
        assert!(
            opens_unsigned(&relay, &owned(pinned).id()).await,
            "{pinned}"
        );
    }
}

#[tokio::test]
async fn pins_of_the_fixture_make_room_for_no_new_one_before_their_time() {
    let fixture = Fixture::copied();
    let max = fixture.list("pinned_keys").len().to_string();
    let relay = fixture
        .start(&[("RELAY_PINS_MAX", &max), ("RELAY_BLOB_TTL_DAYS", "30")])
        .await;
    let mut guest = Guest::connect(&relay).await;
    let new = guest.subscribe_to(&[&Owned::key(100)], false);
    assert_eq!(guest.try_subscribe(new.clone()).await, [Err("relay_full")]);
    expect_pins(&relay, &fixture).await;
    relay.time.advance(32 * DAY);
    assert!(guest.try_subscribe(new).await[0].is_ok());
}

/// Eight owners have room under one hash; what strangers stored goes first.
#[tokio::test]
async fn a_proven_recovery_proof_of_the_fixture_outlasts_the_strangers() {
    let fixture = Fixture::copied();
    let relay = fixture.start(&[]).await;
    for number in 1..=8_u8 {
        // An address may take two places a day.
        let address = format!("192.0.2.{number}");
        let mut stranger = relay.client_from(&address, &id(number)).await;
        let payload = json!({ "type": "RecoveryProofStore", "key_hash": id(0xAB),
            "proof_data": format!("stranger {number}").into_bytes() });
        stranger.send(&envelope("a proof", payload)).await;
        stranger.expect_stored("a proof").await;
    }
    let proofs = proofs_under(&relay, &[0xAB]).await;
    assert_eq!(proofs.len(), 8);
    assert!(proofs.contains(&(0xAB, "by a v2 signature".into())));
    assert!(!proofs.contains(&(0xAB, "by a stranger".into())));

    // Its owner may replace it.
    let mut owner = Guest::connect_from(&relay, "192.0.2.100").await;
    owner.open_empty(&Owned::key(4)).await;
    let proof = RecoveryProof {
        key_hash: [0xAB; 32],
        proof: b"a newer one".to_vec().into(),
    };
    owner.answer(Request::RecoveryStore(proof)).await;
    let proofs = proofs_under(&relay, &[0xAB]).await;
    assert_eq!(proofs[0].1, "a newer one");
    assert!(!proofs.contains(&(0xAB, "by a v2 signature".into())));
}
