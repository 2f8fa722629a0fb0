//! `vauchi-relay restore`: puts a backup where a relay can start from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::process::geteuid;

use super::banner::full_path;
use super::scratch::{ENDS_OF_A_DATABASE, Placed, Scratch, name_what_was_left};
use super::verify::{From, look, summary, told_of_damage};
use super::{say, settings};
use crate::config::{Config, StorageBackend};
use crate::filesystem::place::put_in_place;
use crate::secrets::{SECRET_FILE, Secret};
use crate::server;
use crate::store::sqlite::{DATABASE_FILE, DataDirLock, LOCK_FILE};

/// Restore a backup into an empty data directory.
///
/// Checks the backup as `verify` does, and overwrites nothing: if files are in the way, it names them
/// and fails. If RELAY_SECRET_FILE is set, that file is not changed and must hold the backup's secret.
///
/// Blobs that were acknowledged after the backup are delivered again; blobs that were stored after it
/// are lost. Exit codes: 0 restored; 1 failed, and nothing was changed; 2 invalid settings or
/// arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup, or - for standard input
    #[arg(value_name = "FILE")]
    from: PathBuf,

    /// Restore into this folder instead of RELAY_DATA_DIR
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Checks and restores, or changes nothing.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut config = settings()?;
    match config.storage {
        StorageBackend::Sqlite => {}
        StorageBackend::Memory => bail!(
            "RELAY_STORAGE_BACKEND is memory: a relay with these settings ignores restored files"
        ),
        StorageBackend::Postgres => bail!(
            "RELAY_STORAGE_BACKEND is postgres: restore the database with pg_restore or from a base backup, and with it the relay's secret ({})",
            full_path(&server::secret_file(&config))
        ),
    }
    config.data_dir = args.to.unwrap_or(config.data_dir);
    let folder = config.data_dir.as_path();
    let owner = Owner::of(folder).with_context(|| {
        format!(
            "{}: RELAY_DATA_DIR or --to must name an existing folder",
            full_path(folder)
        )
    })?;
    let _lock = DataDirLock::take(folder, config.allow_network_fs)?;
    owner.give(&File::open(folder.join(LOCK_FILE))?)?;
    see_that_nothing_is_in_the_way(folder)?;

    let from = From::parse(args.from);
    name_what_was_left(folder);
    let mut scratch = Scratch::new(folder).with_context(|| full_path(folder))?;
    let (unpacked, checked) = tokio::select! {
        // First, so that the signal is caught before anything is there to be left behind.
        biased;
        error = super::interrupted() => return Err(error),
        looked = look(&from, scratch.database()) => looked?,
    };
    let is_secret_there = is_secret_there(&config, &unpacked.secret)?;

    owner.give(&File::open(&unpacked.database)?)?;
    let mut placed = Placed::default();
    // First the database: should the power fail here, a start misses the secret and says so. The other way
    // round it would begin with an empty database, without a word.
    let database = folder.join(DATABASE_FILE);
    put_in_place(&unpacked.database, &database).with_context(|| full_path(folder))?;
    placed.add(database);
    if !is_secret_there {
        let path = folder.join(SECRET_FILE);
        unpacked
            .secret
            .write_new(&path)
            .with_context(|| full_path(&path))?;
        placed.add(path.clone());
        owner.give(&File::open(&path)?)?;
    }
    placed.keep();
    say::note(format_args!(
        "restored into {}: {}",
        full_path(folder),
        summary(&unpacked)
    ));
    if checked.damaged > 0 {
        say::note(format_args!("warning: {}", told_of_damage(checked)));
    }
    if owner.is_another() {
        say::note(format_args!(
            "warning: the folder belongs to user {}, but the restored files to user {} (you); change their owner to the user that runs the relay",
            owner.user,
            geteuid().as_raw()
        ));
    }
    Ok(())
}

/// A log beside a database that is not its own would destroy it.
fn see_that_nothing_is_in_the_way(folder: &Path) -> anyhow::Result<()> {
    let there: Vec<_> = ENDS_OF_A_DATABASE
        .into_iter()
        .map(|end| folder.join(format!("{DATABASE_FILE}{end}")))
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| full_path(&path))
        .collect();
    if !there.is_empty() {
        bail!(
            "a database already exists, and restore overwrites nothing; move it away: {}",
            there.join(" ")
        );
    }
    Ok(())
}

/// Whether the secret need not be written: it is where the relay looks for it. Another one there is an
/// error.
fn is_secret_there(config: &Config, secret: &Secret) -> anyhow::Result<bool> {
    let is_same = |there: &Secret| there.check_value() == secret.check_value();
    if let Some(path) = &config.secret_file {
        let there = Secret::load(path).context("RELAY_SECRET_FILE")?;
        if !is_same(&there) {
            bail!(
                "RELAY_SECRET_FILE: {} differs from the backup's secret; put the backup's secret there (tar -xOf FILE {SECRET_FILE}), or unset RELAY_SECRET_FILE",
                path.display()
            );
        }
        return Ok(true);
    }
    let path = config.data_dir.join(SECRET_FILE);
    if path.symlink_metadata().is_err() {
        return Ok(false);
    }
    if !Secret::load(&path).is_ok_and(|there| is_same(&there)) {
        bail!(
            "{} already exists and differs from the backup's secret; restore overwrites nothing: move it away",
            full_path(&path)
        );
    }
    Ok(true)
}

/// Whose files the relay's are: those of the folder's owner.
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn of(folder: &Path) -> io::Result<Self> {
        let folder = fs::metadata(folder)?;
        let (user, group) = (folder.uid(), folder.gid());
        Ok(Self { user, group })
    }

    /// Only root can and need do it.
    fn give(&self, file: &File) -> io::Result<()> {
        if geteuid().is_root() {
            fchown(file, Some(self.user), Some(self.group))?;
        }
        Ok(())
    }

    fn is_another(&self) -> bool {
        let me = geteuid();
        !me.is_root() && me.as_raw() != self.user
    }
}
