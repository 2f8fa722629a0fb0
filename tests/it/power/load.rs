//! A relay at work, recorded: senders and recipients over real sockets, through several starts and ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use vauchi_relay::client::{
    Blob, Client, Delivery, Event, MailboxKey, Options, Receipts, Submitted,
};

use super::disk::{Disk, Image, NOT_KEPT, RESERVE};
use super::ledger::{Ledger, content, item_of};
use super::recording::{Moment, Recorder, Step, inode};
use crate::process::Process;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// After so long without a change a relay has done what it does when it is idle.
const QUIET: Duration = Duration::from_millis(2_500);

/// What a run is to do.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) seed: u64,
    pub(super) mailboxes: usize,
    /// How many of them somebody reads meanwhile.
    pub(super) read: usize,
    /// How large most blobs are at the most; one of twenty is forty times larger.
    pub(super) bytes_max: usize,
    /// The relays, one after the other.
    pub(super) sessions: Vec<Session>,
}

/// How one relay of a run works and ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    /// How many blobs each mailbox gets.
    pub(super) blobs: u64,
    /// Whether it has nothing to do for some seconds before its end.
    pub(super) rests: bool,
    /// Killed in the middle of its work, and not stopped.
    pub(super) is_killed: bool,
}

/// What a relay does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Start,
    Work,
    Rest,
    Stop,
}

/// A relay that was recorded.
pub(super) struct Run {
    pub(super) keys: Vec<MailboxKey>,
    pub(super) steps: Vec<Step>,
    pub(super) folder: u64,
    pub(super) ledger: Ledger,
    /// When each phase began.
    pub(super) phases: BTreeMap<Moment, Phase>,
}

/// What the tasks of a run share.
struct Shared {
    load: Load,
    recorder: Recorder,
    ledger: Mutex<Ledger>,
    keys: Vec<MailboxKey>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn now(&self) -> Moment {
        self.recorder.now()
    }
}

impl Run {
    /// Records relays on a fresh folder.
    pub(super) async fn record(load: Load) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared {
            recorder: Recorder::new(folder.path()),
            ledger: Mutex::default(),
            keys: keys(&load),
            load,
        });
        let inode = inode(folder.path());
        let (mut steps, mut phases) = (Vec::new(), BTreeMap::new());
        let mut disk = Disk::empty(inode);
        for (number, session) in shared.load.sessions.iter().enumerate() {
            let seed = (shared.load.seed << 16) | ((number as u64) << 8);
            work(&shared, *session, seed, &mut phases).await;
            let new = shared.recorder.read();
            compare(folder.path(), &mut disk, &new, session.is_killed);
            steps.extend(new);
        }
        let shared = Arc::into_inner(shared).expect("no task of the run is left");
        Self {
            keys: shared.keys,
            steps,
            folder: inode,
            ledger: shared.ledger.into_inner().unwrap(),
            phases,
        }
    }

    /// What the relay did before this moment.
    pub(super) fn phase(&self, after: Moment) -> Phase {
        let began = self.phases.range(..after).next_back();
        *began.expect("a run begins with a start").1
    }
}

fn keys(load: &Load) -> Vec<MailboxKey> {
    let mut shared = [0; 32];
    shared[..8].copy_from_slice(&load.seed.to_be_bytes());
    let key = |epoch| MailboxKey::derived(&shared, epoch as u64);
    (0..load.mailboxes).map(key).collect()
}

/// The record has everything: it makes the folder as it is.
fn compare(folder: &Path, disk: &mut Disk, new: &[Step], is_killed: bool) {
    let (last, before) = new.split_last().expect("a relay does something");
    before.iter().for_each(|step| disk.follow(step));
    let without_last = disk.as_seen();
    disk.follow(last);
    let seen = disk.as_seen();
    // A kill may end the last change before it begins, or in the middle.
    let or_else = if is_killed { &without_last } else { &seen };
    let difference = difference(folder, &seen, or_else);
    let end = &new[new.len().saturating_sub(8)..];
    assert_eq!(
        difference, None,
        "killed: {is_killed}; the last steps: {end:#?}"
    );
}

/// Which file is neither as the one image has it nor as the other, and where.
fn difference(folder: &Path, seen: &Image, or_else: &Image) -> Option<String> {
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !seen.0.contains_key(&name) && !or_else.0.contains_key(&name) {
            return Some(format!("{name} is there"));
        }
    }
    for (name, content) in &seen.0 {
        let other = or_else.0.get(name);
        let found = match (std::fs::read(folder.join(name)), other) {
            (Ok(found), _) => found,
            (Err(_), None) => continue,
            (Err(error), Some(_)) => return Some(format!("{name}: {error}")),
        };
        if name == NOT_KEPT || name.starts_with(RESERVE) {
            continue;
        }
        let other = other.unwrap_or(content);
        let bytes = [content.len(), other.len(), found.len()];
        let is_either = |at: &usize| {
            let (byte, zero) = (Some(&found[*at]), Some(&0));
            byte == content.get(*at) || byte == other.get(*at).or(zero)
        };
        let wrong = (0..found.len()).find(|at| !is_either(at));
        let has_length =
            found.len() >= bytes[0].min(bytes[1]) && found.len() <= bytes[0].max(bytes[1]);
        if wrong.is_some() || !has_length {
            return Some(format!(
                "{name}: wrong at {wrong:?}; bytes, before, there: {bytes:?}"
            ));
        }
    }
    None
}

/// One start of a relay, and what happens until its end.
async fn work(
    shared: &Arc<Shared>,
    session: Session,
    seed: u64,
    phases: &mut BTreeMap<Moment, Phase>,
) {
    let relay = shared.recorder.start().await;
    phases.insert(shared.recorder.began(), Phase::Start);
    phases.insert(shared.now(), Phase::Work);
    let enough = Arc::new(Notify::new());
    let mut recipients = JoinSet::new();
    recipients.spawn(receive(
        Arc::clone(shared),
        client(&relay).await,
        seed,
        Arc::clone(&enough),
    ));
    let mut senders = JoinSet::new();
    for mailbox in 0..shared.keys.len() {
        let sender = client(&relay).await;
        let seed = seed | (mailbox as u64 + 1);
        senders.spawn(send(
            Arc::clone(shared),
            sender,
            (mailbox, session.blobs),
            seed,
        ));
    }
    if session.is_killed {
        // About half of it is done.
        for _ in 0..shared.keys.len() / 2 {
            senders.join_next().await.unwrap().unwrap();
        }
        relay.kill().await;
        senders.shutdown().await;
        recipients.shutdown().await;
        return;
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
    enough.notify_one();
    recipients.join_next().await.unwrap().unwrap();
    if session.rests {
        phases.insert(shared.now(), Phase::Rest);
        rest(shared).await;
    }
    phases.insert(shared.now(), Phase::Stop);
    relay.signal("TERM").await;
    let (status, log) = relay.ended().await;
    assert!(status.success(), "{log}");
}

async fn client(relay: &Process) -> Arc<Client> {
    let mut options = Options::new([format!("ws://{}", relay.clients)]);
    (options.window_blobs, options.window_bytes) = (1_024, 16 << 20);
    Arc::new(Client::connect(options).await.unwrap())
}

/// Waits until the folder has not changed for a while.
async fn rest(shared: &Shared) {
    let (mut last, mut since) = (shared.now(), Instant::now());
    while since.elapsed() < QUIET {
        tokio::time::sleep(QUIET / 50).await;
        let now = shared.now();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Submits blobs to one mailbox: most by themselves, some in bursts, some with a topic; extends some and
/// cancels some.
async fn send(shared: Arc<Shared>, client: Arc<Client>, (to, blobs): (usize, u64), seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mailbox = shared.keys[to].mailbox();
    // The relay before was killed and may have stored them: hearing so is a promise, too.
    let unanswered = shared.ledger().unanswered(mailbox);
    for (number, blob) in unanswered {
        hand_in(&shared, &client, (number, &blob)).await;
    }
    let mut left = blobs;
    while left > 0 {
        let burst = left.min(match random.random_range(0..4) {
            0 => random.random_range(2..40),
            _ => 1,
        });
        left -= burst;
        let mut submits = JoinSet::new();
        for _ in 0..burst {
            let bytes_max = shared.load.bytes_max;
            let bytes = match random.random_range(0..20) {
                0 => random.random_range(bytes_max..40 * bytes_max),
                _ => random.random_range(8..bytes_max),
            };
            let number = random.random();
            let mut blob = Blob::new(mailbox, content(number, bytes));
            blob.terms.ttl = Some(10 * DAY);
            if burst == 1 && random.random_ratio(1, 4) {
                blob.terms.topic = Some([random.random_range(0..3); 32]);
            }
            let thought = random.random_range(0..12);
            submits.spawn(submit(
                Arc::clone(&shared),
                Arc::clone(&client),
                blob,
                thought,
            ));
        }
        while let Some(submitted) = submits.join_next().await {
            submitted.unwrap();
        }
    }
}

/// Submits a blob, and may have second thoughts.
async fn submit(shared: Arc<Shared>, client: Arc<Client>, blob: Blob, thought: u32) {
    let number = shared.ledger().submits(&blob, shared.now());
    hand_in(&shared, &client, (number, &blob)).await;
    match thought {
        0 => {
            shared.ledger().extends(number, shared.now());
            let extending = client.extend(blob.mailbox, &blob.secret, 20 * DAY);
            extending.await.unwrap();
            shared.ledger().extended(number, shared.now());
        }
        1 => {
            shared.ledger().leaves(&item_of(&blob), shared.now());
            client.cancel(blob.mailbox, &blob.secret).await.unwrap();
            shared.ledger().left(&item_of(&blob), shared.now());
        }
        _ => {}
    }
}

async fn hand_in(shared: &Shared, client: &Client, (number, blob): (usize, &Blob)) {
    let Submitted::Stored { expires_at, .. } = client.submit(blob).await.unwrap() else {
        unreachable!("it is not for live only")
    };
    shared.ledger().stored(number, expires_at, shared.now());
}

/// Reads some of the mailboxes and acknowledges most of what comes, until it is told to leave.
async fn receive(shared: Arc<Shared>, client: Arc<Client>, seed: u64, enough: Arc<Notify>) {
    let mut random = StdRng::seed_from_u64(seed);
    let read = &shared.keys[..shared.load.read];
    for opened in client.open_each(read, Receipts::None).await.unwrap() {
        opened.unwrap();
    }
    let mut acknowledgements = JoinSet::new();
    loop {
        let event = tokio::select! {
            event = client.next() => event,
            () = enough.notified() => break,
        };
        let Some(Event::Blob(delivery)) = event else {
            continue;
        };
        if random.random_ratio(2, 3) {
            let (shared, client) = (Arc::clone(&shared), Arc::clone(&client));
            acknowledgements.spawn(acknowledge(shared, client, delivery));
        }
    }
    while let Some(acknowledged) = acknowledgements.join_next().await {
        acknowledged.unwrap();
    }
}

async fn acknowledge(shared: Arc<Shared>, client: Arc<Client>, delivery: Delivery) {
    shared.ledger().leaves(&delivery.item, shared.now());
    client.acknowledge(delivery.item).await.unwrap();
    shared.ledger().left(&delivery.item, shared.now());
}
