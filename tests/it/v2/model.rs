//! v2: whatever a client does in whatever order, each mailbox is delivered in order, without gaps, once in a
//! subscription, and never more than the window admits; compared with a tiny model. First each request waits for the
//! answer to the one before it, then none does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vauchi_relay::ids::MailboxId;
use vauchi_relay::protocol::v2::message::Done;
use vauchi_relay::protocol::v2::{Answer, Request};

use crate::harness::Relay;
use crate::store::faulty::faulty_relay;
use crate::v2::client::{Guest, Owned, submit};

const MAILBOXES: usize = 3;
const WINDOW: usize = 4;

#[derive(Debug, Clone)]
enum Operation {
    Submit(usize),
    Open(usize),
    Close(usize),
    /// One of those in flight.
    Acknowledge(prop::sample::Index),
    Purge(usize),
    Reconnect,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let place = 0..MAILBOXES;
    let one = prop_oneof![
        6 => place.clone().prop_map(Operation::Submit),
        2 => place.clone().prop_map(Operation::Open),
        1 => place.clone().prop_map(Operation::Close),
        5 => any::<prop::sample::Index>().prop_map(Operation::Acknowledge),
        1 => place.prop_map(Operation::Purge),
        1 => Just(Operation::Reconnect),
    ];
    prop::collection::vec(one, 1..60)
}

/// What must hold: numbers of blobs, which grow in the order of their submits.
#[derive(Default)]
struct Model {
    next: u32,
    /// Which mailbox holds it.
    kept: BTreeMap<u32, usize>,
    /// Of each open mailbox the last number that was delivered in this subscription.
    open: BTreeMap<usize, u32>,
    in_flight: BTreeSet<u32>,
}

impl Model {
    fn due(&self, place: usize) -> impl Iterator<Item = u32> {
        let after = self.open.get(&place).copied();
        let kept = self.kept.iter();
        kept.filter(move |(number, of)| **of == place && after.is_some_and(|last| **number > last))
            .map(|(number, _)| *number)
    }

    /// How many deliveries must come now.
    fn due_now(&self) -> usize {
        let due: usize = (0..MAILBOXES).map(|place| self.due(place).count()).sum();
        due.min(WINDOW.saturating_sub(self.in_flight.len()))
    }

    /// A blob came: it must be the next one of its mailbox.
    fn came(&mut self, place: usize, number: u32) {
        assert_eq!(self.due(place).next(), Some(number));
        self.open.insert(place, number);
        self.in_flight.insert(number);
    }

    fn close(&mut self, place: usize) {
        self.open.remove(&place);
        let kept = &self.kept;
        self.in_flight
            .retain(|number| kept.get(number) != Some(&place));
    }
}

fn owned(place: usize) -> Owned {
    Owned::v2_only(place as u8 + 1)
}

fn place_of(mailbox: &MailboxId) -> usize {
    (0..MAILBOXES)
        .find(|place| owned(*place).id() == *mailbox)
        .unwrap()
}

fn number_of(id: &[u8; 16]) -> u32 {
    u32::from_be_bytes([id[0], id[1], id[2], id[3]])
}

async fn connect(relay: &Relay) -> Guest {
    let mut guest = Guest::connect(relay).await;
    let window = Request::Window {
        blobs: WINDOW as u32,
        bytes: 1 << 20,
    };
    guest.answer(window).await;
    guest
}

/// Asks, and notes what is delivered before the answer comes.
async fn ask(guest: &mut Guest, model: &mut Model, request: Request) -> Answer {
    guest.ask(request).await;
    loop {
        match guest.receive().await {
            Answer::Blob(blob) => {
                model.came(place_of(&blob.mailbox), number_of(blob.id.as_bytes()));
            }
            Answer::CaughtUp { .. } => {}
            answer => return answer,
        }
    }
}

async fn carry_out(relay: &Relay, guest: &mut Guest, model: &mut Model, operation: &Operation) {
    match operation {
        Operation::Submit(place) => {
            model.next += 1;
            let number = model.next;
            // Before the answer: it may be delivered before it is confirmed.
            model.kept.insert(number, *place);
            let blob = submit(&owned(*place).id(), number, &[*place as u8; 10]);
            let answer = ask(guest, model, Request::Submit(blob)).await;
            assert!(matches!(
                answer,
                Answer::Stored {
                    duplicate: false,
                    ..
                }
            ));
        }
        Operation::Open(place) => {
            let subscribe = guest.subscribe_to(&[&owned(*place)], false);
            let pending = model.kept.values().filter(|of| *of == place).count();
            let answer = ask(guest, model, Request::Subscribe(subscribe)).await;
            let Answer::Subscribed(openings) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!(openings[0].unwrap().pending as usize, pending);
            model.open.entry(*place).or_insert(0);
        }
        Operation::Close(place) => {
            let close = Request::Unsubscribe(vec![owned(*place).id()]);
            ask(guest, model, close).await;
            model.close(*place);
        }
        Operation::Acknowledge(which) => {
            if model.in_flight.is_empty() {
                return;
            }
            let numbers: Vec<_> = model.in_flight.iter().copied().collect();
            let number = *which.get(&numbers);
            let place = model.kept[&number];
            let id = submit(&owned(place).id(), number, b"").id;
            model.in_flight.remove(&number);
            // Kept until the answer has come, so that what is delivered meanwhile is still judged.
            let request = Request::Acknowledge(vec![(owned(place).id(), id)]);
            let answer = ask(guest, model, request).await;
            assert!(matches!(answer, Answer::Done(Done::Acknowledged)));
            model.kept.remove(&number);
        }
        Operation::Purge(place) => {
            let purge = Request::Purge(vec![owned(*place).id()]);
            let answer = ask(guest, model, purge).await;
            if !model.open.contains_key(place) {
                assert!(matches!(answer, Answer::Refused { .. }));
                return;
            }
            let Answer::Purged(mailboxes) = answer else {
                panic!("{answer:?}")
            };
            let gone = model.kept.values().filter(|of| *of == place).count();
            assert_eq!(mailboxes[0].blobs as usize, gone);
            let kept = &model.kept;
            model
                .in_flight
                .retain(|number| kept.get(number) != Some(place));
            model.kept.retain(|_, of| of != place);
        }
        Operation::Reconnect => {
            let old = std::mem::replace(guest, connect(relay).await);
            old.peer.leave().await;
            model.in_flight.clear();
            let open: Vec<_> = std::mem::take(&mut model.open).into_keys().collect();
            for place in open {
                let again = Operation::Open(place);
                Box::pin(carry_out(relay, guest, model, &again)).await;
            }
        }
    }
}

/// What is due comes, and nothing else.
async fn settle(guest: &mut Guest, model: &mut Model) {
    while model.due_now() > 0 {
        match guest.receive().await {
            Answer::Blob(blob) => {
                model.came(place_of(&blob.mailbox), number_of(blob.id.as_bytes()));
            }
            Answer::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let answer = ask(guest, model, Request::Ping).await;
    assert!(matches!(answer, Answer::Done(Done::Pong)));
    assert!(model.in_flight.len() <= WINDOW);
}

/// Whether blobs may be delivered from memory: what a client sees is the same.
#[derive(Debug, Clone, Copy)]
enum Hints {
    Given,
    Hidden,
}

async fn relay(hints: Hints) -> Relay {
    let (relay, faults) = faulty_relay(&[("RELAY_STORAGE_BACKEND", "memory")]).await;
    if let Hints::Hidden = hints {
        faults.hide_hints();
    }
    relay
}

async fn run(operations: Vec<Operation>, hints: Hints) {
    let relay = relay(hints).await;
    let (mut guest, mut model) = (connect(&relay).await, Model::default());
    for operation in &operations {
        carry_out(&relay, &mut guest, &mut model, operation).await;
        settle(&mut guest, &mut model).await;
    }
    assert_eq!(
        relay.metric("relay_blobs_stored").await,
        model.kept.len() as f64
    );
    // A drain would wait for what is in flight.
    guest.peer.leave().await;
    relay.stop().await;
}

/// Asks for everything at once. Then answers come in the order asked, a mailbox is delivered from its first
/// `Subscribed` to its `Unsubscribed`, and each frame finds the model as the frames before it left it.
async fn run_at_once(operations: Vec<Operation>, hints: Hints) {
    let relay = relay(hints).await;
    let (mut guest, mut model) = (connect(&relay).await, Model::default());
    let mut asked = Vec::new();
    for operation in &operations {
        let request = match operation {
            Operation::Submit(place) => {
                model.next += 1;
                model.kept.insert(model.next, *place);
                Request::Submit(submit(&owned(*place).id(), model.next, b"x"))
            }
            Operation::Open(place) => {
                Request::Subscribe(guest.subscribe_to(&[&owned(*place)], false))
            }
            Operation::Close(place) => Request::Unsubscribe(vec![owned(*place).id()]),
            _ => Request::Ping,
        };
        asked.push((guest.ask(request).await, operation));
    }
    for (number, operation) in asked {
        loop {
            let (told, answer) = guest.receive_numbered().await;
            let answer = match answer {
                Answer::Blob(blob) => {
                    model.came(place_of(&blob.mailbox), number_of(blob.id.as_bytes()));
                    assert!(model.in_flight.len() <= WINDOW);
                    continue;
                }
                Answer::CaughtUp(mailboxes) => {
                    let places = mailboxes.iter().map(place_of);
                    let open = |place| model.open.contains_key(&place);
                    assert!(places.into_iter().all(open), "told of a closed one");
                    continue;
                }
                answer => answer,
            };
            match (operation, &answer) {
                (Operation::Submit(_), Answer::Stored { .. }) => {}
                (Operation::Open(place), Answer::Subscribed(_)) => {
                    model.open.entry(*place).or_insert(0);
                }
                (Operation::Close(place), Answer::Done(_)) => model.close(*place),
                (_, Answer::Done(_)) => {}
                _ => panic!("{answer:?} to {operation:?}"),
            }
            assert_eq!(told, Some(number));
            break;
        }
    }
    settle(&mut guest, &mut model).await;
    guest.peer.leave().await;
    relay.stop().await;
}

fn block_on(run: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(run);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_requests_delivers_what_a_tiny_model_says(operations in operations()) {
        block_on(run(operations.clone(), Hints::Hidden));
        block_on(run(operations, Hints::Given));
    }

    #[test]
    fn requests_that_do_not_wait_for_answers_find_the_same_order(operations in operations()) {
        block_on(run_at_once(operations.clone(), Hints::Hidden));
        block_on(run_at_once(operations, Hints::Given));
    }
}
