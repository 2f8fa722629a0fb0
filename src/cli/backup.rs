//! `vauchi-relay backup`: one file with everything that a relay cannot do without.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::archive::{self, Manifest, ROOM_BESIDE, in_blobs};
use super::banner::{full_path, in_bytes};
use super::progress::Progress;
use super::scratch::{Scratch, name_what_was_left};
use super::verify::{self, From};
use super::{Usage, interrupted, say, settings};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, StorageBackend};
use crate::filesystem;
use crate::filesystem::place::{folder_of, put_in_place};
use crate::secrets::{SECRET_FILE, Secret};
use crate::server;
use crate::store::sqlite::DATABASE_FILE;
use crate::store::sqlite::backup::{Copy, Serving, log_bytes};

/// Back up a relay, even while it runs: database and secret in one file.
///
/// The backup contains every blob that was confirmed before the command began. IT ALSO CONTAINS THE
/// RELAY'S SECRET: keep it as safe as the relay's own disk, and encrypt it before you copy it
/// elsewhere, for example `vauchi-relay backup - | age -r KEY > FILE`.
///
/// Run it as the relay's user, with the same RELAY_DATA_DIR and RELAY_SECRET_FILE. Exit codes: 0 the
/// backup is complete and on the disk; 1 it failed and left no files behind; 2 invalid settings or
/// arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A new file (mode 0600), a folder, in which the file is named by the time, or - for standard
    /// output
    #[arg(value_name = "FILE")]
    to: PathBuf,

    /// Folder for the temporary copy of the database [default: FILE's folder; for - the data directory]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,

    /// Read the file back at the end and check it as `verify` does
    #[arg(long)]
    verify: bool,
}

/// How much may be written to the relay's log while the database is copied. The log cannot begin anew
/// meanwhile, and is moved into the database when the copy is done, which senders wait for: 0.5 s for
/// 467 MiB and 2.6 s for 866 MiB were seen, so some seconds for this, and less than the 10 s after which
/// a session whose write waits is refused.
const LOG_GROWTH_MAX: u64 = 2 << 30;

/// Between two looks at the log and at the disk.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Where the archive goes.
enum To {
    Stdout,
    /// A file in this folder, with this name or one that is made from the time.
    Folder(PathBuf, Option<PathBuf>),
}

/// Backs up, or leaves nothing behind.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let to = To::parse(&args)?;
    let config = settings()?;
    match config.storage {
        StorageBackend::Sqlite => {}
        StorageBackend::Memory => {
            bail!("RELAY_STORAGE_BACKEND is memory: there are no files to back up")
        }
        StorageBackend::Postgres => bail!(
            "RELAY_STORAGE_BACKEND is postgres: back up the database with pg_dump or pg_basebackup, and with it the relay's secret ({})",
            full_path(&server::secret_file(&config))
        ),
    }
    let written = tokio::select! {
        // First, so that the signal is caught before anything is there to be left behind.
        biased;
        error = interrupted() => return Err(error),
        written = write(&args, &config, &to) => written?,
    };
    let Written {
        manifest,
        path,
        bytes,
    } = written;
    let name = path
        .as_deref()
        .map_or("standard output".to_owned(), full_path);
    say::note(format_args!(
        "backed up {} as of {} to {name}: {}, {:.1} s",
        in_blobs(manifest.blobs),
        manifest.created_at,
        in_bytes(bytes),
        began.elapsed().as_secs_f64(),
    ));
    say::note(
        "the backup contains the relay's secret: keep it as safe as the relay's own disk, and encrypt it before you copy it elsewhere",
    );
    if let Some(path) = path {
        // For scripts: which file it is. A backup that is whole is not deleted because of its name.
        let told = say::line(path.display());
        if args.verify {
            verify::run_on(&From::File(path), args.temp_dir.as_deref()).await?;
        }
        told.with_context(|| {
            format!("the backup {name} is complete, but its name cannot be told")
        })?;
    }
    Ok(())
}

impl To {
    fn parse(args: &Args) -> anyhow::Result<Self> {
        if args.to == Path::new("-") {
            if args.verify {
                bail!(Usage(
                    "--verify reads the file back, which standard output does not allow".to_owned()
                ));
            }
            if io::stdout().is_terminal() {
                bail!(Usage(
                    "standard output is a terminal; redirect the backup to a file or a pipe, for example: vauchi-relay backup - > FILE"
                        .to_owned()
                ));
            }
            return Ok(Self::Stdout);
        }
        if args.to.is_dir() {
            return Ok(Self::Folder(args.to.clone(), None));
        }
        if args.to.symlink_metadata().is_ok() {
            bail!(already_there(&args.to));
        }
        let folder = folder_of(&args.to).to_owned();
        Ok(Self::Folder(folder, Some(args.to.clone())))
    }
}

fn already_there(path: &Path) -> String {
    format!(
        "{} already exists, and backup overwrites nothing; choose another file name, or a folder",
        path.display()
    )
}

struct Written {
    manifest: Manifest,
    path: Option<PathBuf>,
    bytes: u64,
}

async fn write(args: &Args, config: &Config, to: &To) -> anyhow::Result<Written> {
    let secret = secret(config)?;
    let mut serving = Serving::open(&config.data_dir, &secret).await?;
    let database_bytes = serving.bytes().await?;
    let beside = match to {
        To::Stdout => config.data_dir.as_path(),
        To::Folder(folder, _) => folder,
    };
    let work = args.temp_dir.as_deref().unwrap_or(beside);
    see_that_there_is_room(config, to, work, database_bytes)?;

    let mut scratch = scratch(work)?;
    let copy = scratch.database();
    // Made here, so that it has this mode from the first byte on.
    new_file(&copy)?;
    // Before the copy begins, so that all that was confirmed by then is in it.
    let moment = Clock::system().wall();
    tokio::select! {
        copied = serving.copy_to(&copy) => copied?,
        too_much = watch(config, LOG_GROWTH_MAX, &copy, database_bytes) => return Err(too_much),
    }
    let manifest = describe(&copy, moment).await?;
    let database = File::open(&copy)?;
    match to {
        To::Stdout => {
            let about = manifest.clone();
            let bytes = blocking(move || {
                let mut out = BufWriter::with_capacity(1 << 20, io::stdout());
                let bytes = archive::write(&mut out, &about, &secret, database)?;
                out.flush().map(|()| bytes)
            });
            let bytes = bytes.await.context("standard output")?;
            let path = None;
            Ok(Written {
                manifest,
                path,
                bytes,
            })
        }
        To::Folder(folder, name) => {
            let mut scratch = match args.temp_dir {
                None => scratch,
                Some(_) => self::scratch(folder)?,
            };
            let name = name.clone();
            let path = name.unwrap_or_else(|| folder.join(name_of(&manifest.created_at)));
            let draft = scratch.file("archive");
            let mut file = new_file(&draft)?;
            let about = manifest.clone();
            let bytes = blocking(move || {
                let bytes = archive::write(&mut file, &about, &secret, database)?;
                file.sync_all().map(|()| bytes)
            });
            let bytes = bytes.await.with_context(|| full_path(&path))?;
            put_in_place(&draft, &path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => anyhow::Error::msg(already_there(&path)),
                _ => anyhow::Error::from(error).context(full_path(&path)),
            })?;
            let path = Some(path);
            Ok(Written {
                manifest,
                path,
                bytes,
            })
        }
    }
}

/// The secret of a relay that has been started once; it is never made here.
fn secret(config: &Config) -> anyhow::Result<Secret> {
    if let Some(path) = &config.secret_file {
        return Secret::load(path).context("RELAY_SECRET_FILE");
    }
    let path = config.data_dir.join(SECRET_FILE);
    if !path.exists() && !config.data_dir.join(DATABASE_FILE).exists() {
        bail!(
            "{}: there is no relay's database here; RELAY_DATA_DIR must name the relay's folder",
            full_path(&config.data_dir)
        );
    }
    if !path.exists() {
        bail!(
            "{} is missing; set RELAY_SECRET_FILE as the relay has it",
            full_path(&path)
        );
    }
    Ok(Secret::load(&path)?)
}

fn scratch(folder: &Path) -> anyhow::Result<Scratch> {
    name_what_was_left(folder);
    Scratch::new(folder).with_context(|| format!("cannot write to {}", full_path(folder)))
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Refuses before anything is written. The copy and the archive are both there for a while, and what
/// the relay keeps free of its own disk stays free.
fn see_that_there_is_room(
    config: &Config,
    to: &To,
    work: &Path,
    database_bytes: u64,
) -> anyhow::Result<()> {
    let device = |folder: &Path| folder.metadata().map(|metadata| metadata.dev()).ok();
    let mut needs = vec![(work, database_bytes)];
    if let To::Folder(folder, _) = to {
        if device(folder) == device(work) {
            needs[0].1 += database_bytes;
        } else {
            needs.push((folder, database_bytes));
        }
    }
    for (folder, bytes) in needs {
        let is_the_relays = device(folder) == device(&config.data_dir);
        let beside = if is_the_relays {
            config.free_bytes_min
        } else {
            0
        };
        let needed = bytes.saturating_add(ROOM_BESIDE).saturating_add(beside);
        let free = filesystem::free_bytes(folder).with_context(|| full_path(folder))?;
        if free < needed {
            bail!(
                "{}: {} are free, but the backup needs {} temporarily (the copy of the database, {}, and the file{}); free disk space, or use another disk for FILE or --temp-dir",
                full_path(folder),
                in_bytes(free),
                in_bytes(needed),
                in_bytes(database_bytes),
                if is_the_relays {
                    ", plus RELAY_MIN_FREE_BYTES"
                } else {
                    ""
                },
            );
        }
    }
    Ok(())
}

/// Looks after the relay while its database is copied; ends only when that has to be given up.
async fn watch(
    config: &Config,
    log_growth_max: u64,
    copy: &Path,
    database_bytes: u64,
) -> anyhow::Error {
    let log_at_first = log_bytes(&config.data_dir);
    let free = || filesystem::free_bytes(&config.data_dir).unwrap_or(u64::MAX);
    // A relay that is full already is to be backed up all the same.
    let free_bytes_min = match free() >= config.free_bytes_min {
        true => config.free_bytes_min,
        false => 0,
    };
    let mut progress = Progress::new();
    loop {
        let grown = log_bytes(&config.data_dir).saturating_sub(log_at_first);
        if grown > log_growth_max {
            return anyhow::anyhow!(
                "backup stopped: the relay wrote {} to its log while the database was copied, more than it should have to move at once; retry at a quieter time, or to a faster disk",
                in_bytes(grown)
            );
        }
        if free() < free_bytes_min {
            return anyhow::anyhow!(
                "backup stopped: the relay's disk has less than RELAY_MIN_FREE_BYTES free; free disk space, or use another disk for FILE or --temp-dir"
            );
        }
        let done = copy.metadata().map_or(0, |metadata| metadata.len());
        progress.show("copying the database", done, database_bytes);
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn describe(copy: &Path, moment: Timestamp) -> anyhow::Result<Manifest> {
    let bytes = copy.metadata()?.len();
    let mut copy = Copy::open(copy).await?;
    let contents = copy.contents().await?;
    let created_at = copy.in_words(moment).await?;
    copy.close().await;
    Ok(Manifest::of(contents, created_at, moment, bytes))
}

/// `vauchi-relay-20261121T052519Z.tar`, without the colons that tar takes for a host's.
fn name_of(created_at: &str) -> String {
    let mut time = created_at.to_owned();
    time.retain(|letter| !"-:".contains(letter));
    format!("vauchi-relay-{time}.tar")
}

/// Runs what waits for the disk beside what waits for signals.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_backup_in_a_folder_is_named_by_its_time() {
        let name = name_of("2026-11-21T05:25:19Z");
        assert_eq!(name, "vauchi-relay-20261121T052519Z.tar");
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_grows_too_much_ends_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            free_bytes_min: 0,
            ..Config::default()
        };
        let log = folder.path().join("relay.db-wal");
        // What was there before the copy began does not count.
        fs::write(&log, vec![0; 1_000]).unwrap();
        let copy = folder.path().join("copy");
        let watching = watch(&config, 100, &copy, 1);
        tokio::pin!(watching);
        let still = tokio::time::timeout(LOOK_PAUSE * 3, &mut watching).await;
        assert!(still.is_err(), "nothing grows");
        fs::write(&log, vec![0; 1_101]).unwrap();
        let line = watching.await.to_string();
        assert!(line.contains("the relay wrote 101 bytes"), "{line}");
    }

    #[test]
    fn the_relays_own_room_is_not_used_up() {
        let folder = tempfile::tempdir().unwrap();
        let config = |free_bytes_min| Config {
            data_dir: folder.path().to_owned(),
            free_bytes_min,
            ..Config::default()
        };
        let to = To::Folder(folder.path().to_owned(), None);
        let refused =
            |config: Config, bytes| see_that_there_is_room(&config, &to, folder.path(), bytes);
        assert!(refused(config(0), 1).is_ok());
        let line = refused(config(1 << 60), 1).unwrap_err().to_string();
        assert!(line.contains("RELAY_MIN_FREE_BYTES"), "{line}");
        let line = refused(config(0), 1 << 60).unwrap_err().to_string();
        assert!(line.contains("--temp-dir"), "{line}");
    }
}
