//! Limits that cannot be dodged: by address, by address and mailbox, by connection. Each through
//! the real socket; a proxy on loopback, which is trusted, lets a test be many addresses.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error as WsError;
use vauchi_relay::limits::table::TABLE;

use crate::harness::{Peer, Relay, envelope, http, id, prefixed, update};

const HOME: &str = "203.0.113.7";
const ELSEWHERE: &str = "203.0.113.8";

/// Status and `Retry-After` of a connection that is turned away before it is a session.
fn turned_away(connecting: Result<Peer, WsError>) -> (u16, u64) {
    match connecting {
        Err(WsError::Http(response)) => {
            let retry_after = response.headers()["retry-after"].to_str().unwrap();
            (response.status().as_u16(), retry_after.parse().unwrap())
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was let in"),
    }
}

/// A signed handshake whose signature is not good.
fn badly_signed(byte: u8) -> Value {
    json!({
        "client_id": id(byte),
        "identity_public_key": vec![byte; 32],
        "nonce": vec![7; 32],
        "signature": vec![9; 64],
        "signature_timestamp": 1_795_220_095_u64,
    })
}

async fn answer(peer: &mut Peer) -> Value {
    peer.receive().await["payload"].clone()
}

async fn submit_until_refused(peer: &mut Peer, to: &str, blob: &[u8], most: u32) -> (u32, Value) {
    for stored in 0..most {
        peer.submit(to, blob).await;
        let answer = answer(peer).await;
        if answer["status"] != "Stored" {
            return (stored, answer);
        }
    }
    panic!("{most} were stored");
}

#[tokio::test]
async fn throw_away_ids_share_the_rate_of_their_address() {
    let relay = Relay::start(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "3"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "5"),
    ])
    .await;
    let mut stored = 0;
    for byte in 10..14 {
        let mut throw_away = relay.client_from(HOME, &id(byte)).await;
        let (count, refusal) = submit_until_refused(&mut throw_away, &id(2), b"x", 4).await;
        assert_eq!(refusal["error"], "rate_limited");
        stored += count;
    }
    assert_eq!(stored, 5, "3 of the first id, 2 of the second");
    let mut neighbour = relay.client_from(ELSEWHERE, &id(10)).await;
    neighbour.store(&id(2), b"my own rate").await;

    // A fifth of a minute gives one of five back.
    relay.time.advance(Duration::from_secs(12));
    let mut again = relay.client_from(HOME, &id(13)).await;
    let (count, _) = submit_until_refused(&mut again, &id(2), b"x", 2).await;
    assert_eq!(count, 1);
    assert_eq!(
        relay
            .metric("relay_rate_limited_by_total{budget=\"client\"}")
            .await,
        1.0
    );
    assert_eq!(relay.metric("relay_rate_limited_total").await, 5.0);
}

#[tokio::test]
async fn a_64_of_ipv6_is_one_address_and_mapped_ipv4_is_ipv4() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "1")]).await;
    let mut count = 1;
    for (first, same, other) in [
        ("2001:db8:1:2::1", "2001:db8:1:2:3::4", "2001:db8:1:3::1"),
        (HOME, "::ffff:203.0.113.7", ELSEWHERE),
    ] {
        for (address, status) in [(first, "Stored"), (same, "Failed"), (other, "Stored")] {
            let mut peer = relay.client_from(address, &id(count)).await;
            peer.submit(&id(99), b"x").await;
            assert_eq!(answer(&mut peer).await["status"], status, "{address}");
            count += 1;
        }
    }
}

#[tokio::test]
async fn a_flood_of_throw_away_ids_leaves_room_in_a_stranger_s_mailbox() {
    let relay = Relay::start(&[
        ("RELAY_MAILBOX_MAX_BLOBS", "10"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
    ])
    .await;
    for byte in 10..15 {
        let mut throw_away = relay.client_from(HOME, &id(byte)).await;
        throw_away.store(&id(2), &[byte]).await;
    }
    let mut throw_away = relay.client_from(HOME, &id(15)).await;
    let message_id = throw_away.submit(&id(2), b"one too many").await;
    let refusal = throw_away.expect_refusal(&message_id, "rate_limited").await;
    // Five an hour: the next fits after twelve minutes.
    assert_eq!(refusal["retry_after_ms"], 12 * 60 * 1_000);
    throw_away.store(&id(3), b"another mailbox").await;
    let mut honest = relay.client_from(ELSEWHERE, &id(1)).await;
    honest.store(&id(2), b"there is room").await;

    relay.time.advance(Duration::from_secs(12 * 60));
    throw_away.store(&id(2), b"the next").await;
    let message_id = throw_away.submit(&id(2), b"too soon").await;
    throw_away.expect_refusal(&message_id, "rate_limited").await;
}

#[tokio::test]
async fn the_share_of_a_mailbox_counts_bytes_too() {
    let relay = Relay::start(&[
        ("RELAY_MAILBOX_MAX_BYTES", "20480"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
    ])
    .await;
    let mut sender = relay.client_from(HOME, &id(1)).await;
    // 1,700 and 256 bytes are 2 KiB of the 10 KiB share.
    let (stored, refusal) = submit_until_refused(&mut sender, &id(2), &[7; 1_700], 9).await;
    assert_eq!((stored, &refusal["error"]), (5, &json!("rate_limited")));
    let by_bytes = "relay_rate_limited_by_total{budget=\"mailbox_bytes\"}";
    assert_eq!(relay.metric(by_bytes).await, 1.0);
}

#[tokio::test]
async fn one_address_cannot_fill_the_relay() {
    let relay = Relay::start(&[
        ("RELAY_MAX_STORAGE_BYTES", "409600"),
        ("RELAY_ADDRESS_SHARE_PER_DAY", "0.05"),
    ])
    .await;
    // 20 KiB a day; each throw-away id puts 4 KiB into a mailbox of its own.
    let blob = vec![7; 4 * 1_024 - 256];
    for byte in 10..15 {
        let mut throw_away = relay.client_from(HOME, &id(byte)).await;
        throw_away.store(&id(byte + 100), &blob).await;
    }
    let mut throw_away = relay.client_from(HOME, &id(15)).await;
    let message_id = throw_away.submit(&id(115), &blob).await;
    let refusal = throw_away.expect_refusal(&message_id, "rate_limited").await;
    let until_it_fits = Duration::from_millis(refusal["retry_after_ms"].as_u64().unwrap());
    assert_eq!(until_it_fits.as_secs() / 60, 24 * 60 / 5);
    let mut stranger = relay.client_from(ELSEWHERE, &id(1)).await;
    stranger.store(&id(2), &blob).await;

    // A small one fits sooner, the same one when it was said to.
    relay.time.advance(until_it_fits / 4);
    let message_id = throw_away.submit(&id(115), &blob).await;
    throw_away.expect_refusal(&message_id, "rate_limited").await;
    relay
        .time
        .advance(until_it_fits * 3 / 4 + Duration::from_millis(1));
    throw_away.store(&id(115), &blob).await;
}

#[tokio::test]
async fn what_is_not_stored_takes_no_share() {
    let relay = Relay::start(&[
        ("RELAY_MAILBOX_MAX_BLOBS", "4"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
    ])
    .await;
    let mut sender = relay.client_from(HOME, &id(1)).await;
    let repeated = update("the same submit", &id(2), b"once");
    for _ in 0..5 {
        sender.send(&repeated).await;
        sender.expect_stored("the same submit").await;
    }
    sender.store(&id(2), b"the second of two").await;

    let mut other = relay.client_from(ELSEWHERE, &id(1)).await;
    other.store(&id(2), b"the third").await;
    other.store(&id(2), b"the fourth").await;
    let mut third = relay.client_from("203.0.113.9", &id(1)).await;
    for _ in 0..5 {
        let message_id = third.submit(&id(2), b"no room").await;
        third.expect_refusal(&message_id, "mailbox_full").await;
    }
}

#[tokio::test]
async fn a_refused_share_still_counts_as_a_request() {
    let relay = Relay::start(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "5"),
        ("RELAY_MAILBOX_MAX_BLOBS", "2"),
        ("RELAY_MAILBOX_SHARE_PER_HOUR", "0.5"),
    ])
    .await;
    let mut sender = relay.client_from(HOME, &id(1)).await;
    sender.store(&id(2), b"its share").await;
    for _ in 0..4 {
        let message_id = sender.submit(&id(2), b"more").await;
        sender.expect_refusal(&message_id, "rate_limited").await;
    }
    let message_id = sender.submit(&id(3), b"another mailbox").await;
    let refusal = sender.expect_refusal(&message_id, "rate_limited").await;
    assert_eq!(refusal["retry_after_ms"], 12_000, "the client's own rate");
}

#[tokio::test]
async fn acknowledging_what_is_in_flight_is_free_and_anything_else_is_not() {
    let relay = Relay::start(&[
        ("RELAY_RATE_LIMIT_PER_MIN", "2"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "2"),
    ])
    .await;
    for byte in 10..13 {
        let mut sender = relay.client_from(ELSEWHERE, &id(byte)).await;
        sender.store(&id(2), &[byte]).await;
        relay.time.advance(Duration::from_secs(60));
    }
    let mut recipient = relay.client_from(HOME, &id(2)).await;
    for _ in 0..3 {
        let delivered = recipient.delivery().await;
        recipient.acknowledge(&delivered.id).await;
    }
    relay
        .metric_becomes("relay_blobs_acknowledged_total", 3.0)
        .await;
    for _ in 0..2 {
        recipient
            .acknowledge("00000000-0000-4000-8000-000000000000")
            .await;
    }
    let message_id = recipient.submit(&id(3), b"x").await;
    recipient.expect_refusal(&message_id, "rate_limited").await;
}

#[tokio::test]
async fn ignored_invalid_and_unreadable_frames_are_charged() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "3")]).await;
    let mut peer = relay.client_from(HOME, &id(1)).await;
    let unknown = json!({ "type": "SomethingNew" });
    peer.send(&envelope("ignored", unknown)).await;
    peer.send(&update("invalid", "nobody", b"x")).await;
    peer.expect_refusal("invalid", "invalid").await;
    peer.send_bytes(prefixed(b"garbage")).await;
    assert_eq!(answer(&mut peer).await["error"], "invalid");
    let message_id = peer.submit(&id(2), b"x").await;
    peer.expect_refusal(&message_id, "rate_limited").await;
}

#[tokio::test]
async fn an_address_has_its_slots_and_gets_them_back() {
    let relay = Relay::start(&[("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "2")]).await;
    let first = relay.client_from(HOME, &id(1)).await;
    let _second = relay.client_from(HOME, &id(2)).await;
    assert_eq!(turned_away(relay.connect_from(HOME).await), (429, 30));
    assert_eq!(relay.metric("relay_connections_refused_total").await, 1.0);
    let _elsewhere = relay.client_from(ELSEWHERE, &id(3)).await;
    first.leave().await;
    relay.metric_becomes("relay_connections_active", 2.0).await;
    let _third = relay.client_from(HOME, &id(4)).await;
    assert_eq!(turned_away(relay.connect_from(HOME).await).0, 429);
}

#[tokio::test]
async fn new_connections_of_an_address_are_counted_and_a_full_house_is_not_its_fault() {
    let relay = Relay::start(&[
        ("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", "3"),
        ("RELAY_MAX_CONNECTIONS", "1"),
    ])
    .await;
    for _ in 0..3 {
        let peer = relay.client_from(HOME, &id(1)).await;
        // Nobody else gets in meanwhile, and that costs nothing.
        assert_eq!(turned_away(relay.connect_from(HOME).await), (503, 5));
        peer.leave().await;
        relay.metric_becomes("relay_connections_active", 0.0).await;
    }
    assert_eq!(turned_away(relay.connect_from(HOME).await), (429, 20));
    let elsewhere = relay.client_from(ELSEWHERE, &id(1)).await;
    elsewhere.leave().await;
    relay.metric_becomes("relay_connections_active", 0.0).await;
    relay.time.advance(Duration::from_secs(20));
    relay.client_from(HOME, &id(1)).await;
    let by_connections = "relay_rate_limited_by_total{budget=\"connections\"}";
    assert_eq!(relay.metric(by_connections).await, 1.0);
}

#[tokio::test]
async fn an_address_opens_so_many_mailboxes_a_minute() {
    let relay = Relay::start(&[("RELAY_OPENINGS_PER_MIN", "1")]).await;
    for byte in 1..=4 {
        relay.client_from(HOME, &id(byte)).await;
    }
    let mut fifth = relay.connect_from(HOME).await.unwrap();
    fifth.say_hello(json!({ "client_id": id(5) })).await;
    let reason = fifth.expect_close(4429).await;
    assert!(reason.contains("mailboxes"), "{reason}");
    relay.client_from(ELSEWHERE, &id(5)).await;
    relay.time.advance(Duration::from_secs(15));
    relay.client_from(HOME, &id(5)).await;
}

#[tokio::test]
async fn too_many_bad_proofs_close_unseen_and_spare_those_without_one() {
    let relay = Relay::start(&[("RELAY_FAILED_PROOFS_PER_MIN", "2")]).await;
    for (address, code) in [
        (HOME, 4401),
        (HOME, 4401),
        (HOME, 4429),
        (ELSEWHERE, 4401),
        (HOME, 4429),
    ] {
        let mut peer = relay.connect_from(address).await.unwrap();
        peer.say_hello(badly_signed(5)).await;
        peer.expect_close(code).await;
    }
    // A neighbour behind the same address that proves nothing goes on.
    relay.client_from(HOME, &id(1)).await;
    relay.time.advance(Duration::from_secs(30));
    let mut peer = relay.connect_from(HOME).await.unwrap();
    peer.say_hello(badly_signed(5)).await;
    peer.expect_close(4401).await;
}

#[tokio::test]
async fn a_forwarded_header_counts_only_from_a_trusted_proxy() {
    let relay = Relay::start(&[
        ("RELAY_TRUSTED_PROXIES", "none"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "1"),
    ])
    .await;
    let mut first = relay.client_from(HOME, &id(1)).await;
    first.store(&id(3), b"x").await;
    let mut second = relay.client_from(ELSEWHERE, &id(2)).await;
    let message_id = second.submit(&id(3), b"x").await;
    second.expect_refusal(&message_id, "rate_limited").await;
}

#[tokio::test]
async fn what_a_client_writes_left_of_the_proxy_does_not_make_it_another() {
    let relay = Relay::start(&[
        ("RELAY_TRUSTED_PROXIES", "127.0.0.1, 198.51.100.0/24"),
        ("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "1"),
    ])
    .await;
    let ways: [&[(&str, &str)]; 5] = [
        &[("x-forwarded-for", HOME)],
        &[("x-forwarded-for", "192.0.2.1, 203.0.113.7:4711")],
        &[("forwarded", "for=192.0.2.2, for=203.0.113.7;proto=https")],
        &[
            ("x-forwarded-for", "192.0.2.3, 203.0.113.7"),
            ("x-forwarded-for", "198.51.100.4"),
        ],
        &[
            ("forwarded", "for=\"[::ffff:203.0.113.7]:80\""),
            ("x-forwarded-for", "203.0.113.7"),
        ],
    ];
    let mut statuses = Vec::new();
    for headers in ways {
        let mut peer = Peer::try_connect_with(relay.running.clients, headers)
            .await
            .unwrap();
        peer.handshake(json!({ "client_id": id(1) })).await;
        peer.submit(&id(3), b"x").await;
        statuses.push(answer(&mut peer).await["status"].clone());
    }
    assert_eq!(statuses, ["Stored", "Failed", "Failed", "Failed", "Failed"]);
}

#[tokio::test]
async fn probes_and_hints_are_not_counted_as_connections() {
    let relay = Relay::start(&[
        ("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "1"),
        ("RELAY_CONNECTIONS_PER_ADDRESS_PER_MIN", "1"),
    ])
    .await;
    let _peer = relay.client_from(HOME, &id(1)).await;
    let probe = format!(
        "GET /health HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nX-Forwarded-For: {HOME}\r\n\r\n"
    );
    for _ in 0..5 {
        assert_eq!(http(relay.running.clients, &probe).await.0, 200);
    }
}

#[tokio::test]
async fn an_address_that_was_refused_everything_is_served_again_after_its_minute() {
    let relay = Relay::start(&[("RELAY_RATE_LIMIT_PER_ADDRESS_PER_MIN", "4")]).await;
    let mut peer = relay.client_from(HOME, &id(1)).await;
    let (stored, refusal) = submit_until_refused(&mut peer, &id(2), b"x", 5).await;
    assert_eq!((stored, &refusal["retry_after_ms"]), (4, &json!(15_000)));
    relay.time.advance(Duration::from_secs(60));
    let (stored, _) = submit_until_refused(&mut peer, &id(2), b"x", 5).await;
    assert_eq!(stored, 4);
}

#[test]
fn the_page_on_limits_shows_exactly_the_budgets_there_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/limits.md");
    let page = std::fs::read_to_string(path).unwrap();
    let shown: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(str::to_owned)
        .collect();
    let period = |secs| match secs {
        60 => "minute",
        3_600 => "hour",
        86_400 => "day",
        other => panic!("{other} seconds have no word"),
    };
    let expected: Vec<_> = TABLE
        .iter()
        .map(|row| {
            format!(
                "| `{}` | {} | {} | {} | {} | `{}` |",
                row.label,
                row.charged,
                row.whose,
                row.wider.label(),
                period(row.period.as_secs()),
                row.setting
            )
        })
        .collect();
    assert_eq!(shown, expected);
}
