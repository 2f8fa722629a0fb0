//! A relay that starts on what a power cut has left, and everything that is asked of it then.

use std::collections::BTreeSet;
use std::path::Path;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use vauchi_relay::client::{
    Blob, Client, Delivery, Event, MailboxKey, Options, Receipts, Submitted,
};

use super::disk::{Disk, Image, NOT_KEPT};
use super::ledger::{Fault, Ledger, content, item_of};
use super::loss::Loss;
use super::recording::{Moment, Recorder};
use crate::harness::{PATIENCE, http_get, value_of};
use crate::process::{Process, command, run};

/// How many blobs are submitted a second time.
const REPEATS: usize = 4;

/// How far settling had come when the power was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Settled {
    /// There is no database, or no row in it.
    Nothing,
    /// Rows, and no run.
    Before,
    /// Entries of a run that does not count: it is not finished, or was merged into another.
    During,
    /// Runs, and rows behind them.
    Since,
    /// All rows are in runs.
    After,
}

/// What was found on an image.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) settled: Settled,
    /// Rows that have left and are in the table still.
    pub(super) has_gone: bool,
    pub(super) delivered: usize,
    pub(super) faults: Vec<Fault>,
}

/// What happens to a relay after it was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// It is stopped, which settles everything, started again, and compared again.
    Stop,
    /// It is backed up, and the backup verified, which looks at every row.
    BackUp,
}

/// A relay starts on this, and the power is cut again in the middle of its start: what that leaves.
pub(super) async fn cut_again(image: &Image, random: &mut StdRng) -> Image {
    let folder = tempfile::tempdir().unwrap();
    image.write(folder.path());
    let mut disk = Disk::holding(image, folder.path());
    let recorder = Recorder::new(folder.path());
    recorder.start().await.kill().await;
    let steps = recorder.read();
    let cut = random.random_range(0..=steps.len());
    steps[..cut].iter().for_each(|step| disk.follow(step));
    disk.cut(Loss::any(random), random)
}

/// Starts a relay on the image and compares what it has with the ledger.
pub(super) async fn try_out(
    image: &Image,
    (keys, ledger, cut): (&[MailboxKey], &Ledger, Moment),
    then: Then,
    random: &mut StdRng,
) -> Verdict {
    let (settled, has_gone, damage) = look(image).await;
    let folder = tempfile::tempdir().unwrap();
    image.write(folder.path());
    let mut faults: Vec<_> = damage.into_iter().map(Fault::Other).collect();

    let relay = Process::start(folder.path()).await;
    let mut found = fetch(&relay, keys).await;
    faults.extend(ledger.judge(&found, cut));
    faults.extend(look_at_counters(&relay, found.len()).await);
    let delivered = found.len();
    faults.extend(repeat(&relay, ledger, cut, random).await);
    found.extend(go_on(&relay, &keys[0]).await);
    if then == Then::BackUp {
        faults.extend(back_up(folder.path()).await);
    }
    if then == Then::Stop {
        relay.signal("TERM").await;
        let (status, log) = relay.ended().await;
        assert!(status.success(), "{log}");
        let relay = Process::start(folder.path()).await;
        let again = fetch(&relay, keys).await;
        faults.extend(differ(&again, &found));
        faults.extend(look_at_counters(&relay, again.len()).await);
    }
    Verdict {
        settled,
        has_gone,
        delivered,
        faults,
    }
}

/// Has SQLite open a copy: how far settling had come, whether rows are gone and not deleted, and damage.
pub(super) async fn look(image: &Image) -> (Settled, bool, Option<String>) {
    let database = image.0.get("relay.db");
    if database.is_none_or(Vec::is_empty) {
        return (Settled::Nothing, false, None);
    }
    let folder = tempfile::tempdir().unwrap();
    let of_database = |name: &String| name.starts_with("relay.db") && name != NOT_KEPT;
    let files = image.0.iter().filter(|(name, _)| of_database(name));
    let files = files.map(|(name, content)| (name.clone(), content.clone()));
    Image(files.collect()).write(folder.path());
    let path = folder.path().join("relay.db");
    let connection = SqliteConnectOptions::new().filename(path).connect().await;
    let mut connection = connection.unwrap();
    let integrity = number_or_text(&mut connection, "PRAGMA integrity_check").await;
    let damage = (!matches!(integrity.as_deref(), Ok("ok"))).then(|| format!("{integrity:?}"));
    let count = async |connection: &mut SqliteConnection, sql| {
        let counted = number_or_text(connection, sql).await;
        // There is no such table yet.
        counted.map_or(0, |number| number.parse::<u64>().unwrap())
    };
    let rows = count(&mut connection, "SELECT count(*) FROM blob").await;
    let tail = "SELECT count(*) FROM blob WHERE seq > (SELECT coalesce(max(last_seq), 0) FROM run)";
    let tail = count(&mut connection, tail).await;
    let runs = count(&mut connection, "SELECT count(*) FROM run").await;
    let stray = "SELECT count(*) FROM entry WHERE run NOT IN (SELECT run FROM run)";
    let stray = count(&mut connection, stray).await;
    let gone = count(&mut connection, "SELECT count(*) FROM gone").await;
    connection.close().await.unwrap();
    let settled = match (rows, stray, runs, tail) {
        (0, 0, ..) => Settled::Nothing,
        (_, 1.., ..) => Settled::During,
        (_, _, 0, _) => Settled::Before,
        (_, _, _, 0) => Settled::After,
        _ => Settled::Since,
    };
    (settled, gone > 0, damage)
}

async fn number_or_text(
    connection: &mut SqliteConnection,
    sql: &'static str,
) -> sqlx::Result<String> {
    let row = sqlx::query(sql).fetch_one(connection).await?;
    row.try_get::<String, _>(0)
        .or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))
}

/// Everything that waits, by mailbox and in order; nothing is acknowledged.
async fn fetch(relay: &Process, keys: &[MailboxKey]) -> Vec<Delivery> {
    let client = client(relay).await;
    let mut found = Vec::new();
    for key in keys {
        client.open(key, Receipts::None).await.unwrap();
        let is_last =
            |event: &Event| matches!(event, Event::CaughtUp(of) if of.contains(&key.mailbox()));
        loop {
            let event = tokio::time::timeout(PATIENCE, client.next()).await;
            let event = event.expect("a mailbox catches up").unwrap();
            if is_last(&event) {
                break;
            }
            if let Event::Blob(delivery) = event {
                found.push(delivery);
            }
        }
        client.unsubscribe(&[key.mailbox()]).await.unwrap();
    }
    found
}

async fn client(relay: &Process) -> Client {
    let mut options = Options::new([format!("ws://{}", relay.clients)]);
    // The most that relays grant by default.
    (options.window_blobs, options.window_bytes) = (1_024, 16 << 20);
    Client::connect(options).await.unwrap()
}

/// The relay counts as many blobs as it delivers, and has found no damage.
async fn look_at_counters(relay: &Process, delivered: usize) -> Vec<Fault> {
    let (_, scrape) = http_get(relay.operators, "/metrics", &[]).await;
    let expected = [
        ("relay_blobs_stored", delivered as f64),
        ("relay_blobs_quarantined", 0.0),
        ("relay_blobs_lost_total", 0.0),
        ("relay_index_rebuilds_total", 0.0),
    ];
    let differ = expected.iter().filter_map(|(series, expected)| {
        let found = value_of(&scrape, series);
        (found != Some(*expected)).then(|| format!("{series} is {found:?} and not {expected}"))
    });
    differ.map(Fault::Other).collect()
}

/// A repeat of what was stored is a duplicate, whether the blob waits or has left.
async fn repeat(relay: &Process, ledger: &Ledger, cut: Moment, random: &mut StdRng) -> Vec<Fault> {
    let client = client(relay).await;
    let mut faults = Vec::new();
    for sent in ledger.remembered(cut).sample(random, REPEATS) {
        // A topic's blob would replace what is there, if it were new.
        let stored = client.submit(&sent.blob).await.unwrap();
        if !matches!(
            stored,
            Submitted::Stored {
                duplicate: true,
                ..
            }
        ) {
            faults.push(Fault::Other("a repeat is stored a second time".to_owned()));
        }
    }
    faults
}

/// The relay takes a new blob and delivers it.
async fn go_on(relay: &Process, key: &MailboxKey) -> Option<Delivery> {
    let blob = Blob::new(key.mailbox(), content(u64::MAX, 100));
    client(relay).await.submit(&blob).await.unwrap();
    let found = fetch(relay, std::slice::from_ref(key)).await;
    let new = found
        .into_iter()
        .find(|delivery| delivery.item == item_of(&blob));
    assert!(new.is_some(), "a new blob is delivered");
    new
}

async fn back_up(folder: &Path) -> Option<Fault> {
    let backups = tempfile::tempdir().unwrap();
    let mut backup = command(folder);
    backup.args(["backup", "--verify"]);
    let (code, _, errors) = run(backup.arg(backups.path().join("backup.tar"))).await;
    (code != Some(0)).then_some(Fault::Other(errors))
}

fn differ(again: &[Delivery], before: &[Delivery]) -> Option<Fault> {
    let bodies = |found: &[Delivery]| -> BTreeSet<_> {
        found.iter().map(|delivery| delivery.body.clone()).collect()
    };
    (bodies(again) != bodies(before)).then(|| {
        let (again, before) = (again.len(), before.len());
        Fault::Other(format!(
            "after a stop {again} blobs come, and not the {before} from before"
        ))
    })
}
