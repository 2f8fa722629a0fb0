//! Any operations on the store, compared with the model of `tests/it/store/model.rs`. In memory, because a disk is slow;
//! `cargo test` compares every engine.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;
use vauchi_relay::store::model::{Class, Tells, View};

use crate::store::contract::{ENGINES, Engine};
use crate::store::model::{ASKS, IDS, MAILBOXES, Operation, compare};

/// There is no server here: only the engine in memory is compared.
#[allow(dead_code, reason = "what only tests need")]
mod database {
    pub(crate) fn is_there() -> bool {
        false
    }

    pub(crate) async fn of_folder(_: &std::path::Path) -> String {
        String::new()
    }
}

/// The tests of the store, as far as the model needs them.
#[allow(dead_code, unused_imports, reason = "what only other tests need")]
#[path = "../../tests/it/store"]
mod store {
    pub(crate) mod contract;
    pub(crate) mod device_sync;
    pub(crate) mod model;
    mod scratch;
}

static MEMORY: LazyLock<&Engine> = LazyLock::new(|| {
    ENGINES
        .iter()
        .find(|engine| engine.name == "memory")
        .unwrap()
});

/// With more, an input only takes longer.
const OPERATIONS_MAX: usize = 200;

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let mut operations = Vec::new();
    while !input.is_empty() && operations.len() < OPERATIONS_MAX {
        // One that is cut off at the end is none.
        operations.extend(operation(&mut input));
    }
    RUNTIME.with(|runtime| runtime.block_on(compare(&operations, &MEMORY)));
});

fn operation(input: &mut Unstructured<'_>) -> Result<Operation> {
    Ok(match input.int_in_range(0..=20)? {
        0..=7 => append(input)?,
        8..=10 => {
            let (mailbox, ids) = names(input)?;
            let tells = tells(input)?;
            Operation::Acknowledge {
                mailbox,
                ids,
                tells,
            }
        }
        11 => Operation::AcknowledgeReceipts,
        12 | 13 => {
            let (mailbox, ids) = names(input)?;
            Operation::Delivered { mailbox, ids }
        }
        14 => {
            let (mailbox, id) = name(input)?;
            let ttl_hours = input.int_in_range(1..=9)?;
            Operation::Extend {
                mailbox,
                id,
                ttl_hours,
            }
        }
        15 => {
            let (mailbox, id) = name(input)?;
            Operation::Cancel { mailbox, id }
        }
        16 => Operation::Purge {
            mailbox: input.int_in_range(0..=MAILBOXES - 1)?,
            view: *input.choose(&[View::V1, View::Proven, View::DeviceSync])?,
            tells: tells(input)?,
        },
        17 => Operation::PurgeOwner {
            owner: input.int_in_range(0..=1)?,
        },
        18 => Operation::Sweep {
            limit: input.int_in_range(1..=4)?,
        },
        _ => Operation::Pass {
            hours: input.int_in_range(1..=3)?,
        },
    })
}

fn append(input: &mut Unstructured<'_>) -> Result<Operation> {
    let (mailbox, id) = name(input)?;
    Ok(Operation::Append {
        mailbox,
        id,
        body_bytes: *input.choose(&[0, 60, 100])?,
        class: *input.choose(&[Class::SeenByV1, Class::ProvenOnly, Class::DeviceSync])?,
        owner: input.int_in_range(0..=1)?,
        topic: *input.choose(&[None, None, Some(0), Some(1)])?,
        ttl_hours: input.int_in_range(1..=9)?,
    })
}

/// A blob's mailbox and id; often of the one that asks for receipts.
fn name(input: &mut Unstructured<'_>) -> Result<(u8, u32)> {
    match input.ratio(1, 5)? {
        true => Ok(ASKS),
        false => Ok((
            input.int_in_range(0..=MAILBOXES - 1)?,
            input.int_in_range(0..=IDS - 1)?,
        )),
    }
}

fn names(input: &mut Unstructured<'_>) -> Result<(u8, Vec<u32>)> {
    let (mailbox, first) = name(input)?;
    let more = input.int_in_range(0..=2)?;
    let more = (0..more).map(|_| input.int_in_range(0..=IDS - 1));
    let ids = std::iter::once(Ok(first)).chain(more);
    Ok((mailbox, ids.collect::<Result<_>>()?))
}

fn tells(input: &mut Unstructured<'_>) -> Result<Tells> {
    Ok(*input.choose(&[Tells::Senders, Tells::Nobody])?)
}
