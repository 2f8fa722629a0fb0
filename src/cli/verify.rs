//! `vauchi-relay verify`: is this backup whole, and would it be one?

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::archive::{self, Unpacked, in_blobs};
use super::banner::{full_path, in_bytes};
use super::progress::Progress;
use super::say;
use super::scratch::{Scratch, name_what_was_left};
use crate::filesystem::place::folder_of;
use crate::store::sqlite::backup::{Checked, Copy, newest_schema};

/// Check that a backup is complete and can be restored. Changes nothing.
///
/// Checks every checksum, the database (by SQLite's own check), that the secret belongs to the
/// database, and every blob. Needs no relay and no settings. Exit codes: 0 the backup is complete; 1 it
/// is not, with the reason on stderr.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup, or - for standard input
    #[arg(value_name = "FILE")]
    from: PathBuf,

    /// Folder to unpack the database to [default: FILE's folder; for - the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

/// Where an archive comes from.
#[derive(Debug, Clone)]
pub(super) enum From {
    Stdin,
    File(PathBuf),
}

/// Checks and says what is in it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (from, temp_dir) = (From::parse(args.from), args.temp_dir.as_deref());
    if std::env::var_os("RELAY_STORAGE_BACKEND").is_some_and(|engine| engine == "postgres") {
        say::note(
            "RELAY_STORAGE_BACKEND is postgres: this checks a backup of a SQLite database; check a dump of PostgreSQL with pg_restore --list, a base backup with pg_verifybackup",
        );
    }
    name_what_was_left(&from.unpacked_in(temp_dir));
    run_on(&from, temp_dir).await
}

pub(super) async fn run_on(from: &From, temp_dir: Option<&Path>) -> anyhow::Result<()> {
    let folder = from.unpacked_in(temp_dir);
    let mut scratch = Scratch::new(&folder).with_context(|| {
        let folder = full_path(&folder);
        format!("cannot write to {folder}; choose another folder with --temp-dir")
    })?;
    let (unpacked, checked) = tokio::select! {
        // First, so that the signal is caught before anything is there to be left behind.
        biased;
        error = super::interrupted() => return Err(error),
        looked = look(from, scratch.database()) => looked?,
    };
    say::note(format_args!("{}: {}", from.name(), summary(&unpacked)));
    if checked.damaged > 0 {
        bail!("{}: {}", from.name(), told_of_damage(checked));
    }
    say::note("complete: every checksum matches, and the secret belongs to the database");
    Ok(())
}

impl From {
    pub(super) fn parse(name: PathBuf) -> Self {
        if name == Path::new("-") {
            return Self::Stdin;
        }
        Self::File(name)
    }

    /// The folder that its database is unpacked in.
    fn unpacked_in(&self, temp_dir: Option<&Path>) -> PathBuf {
        match (temp_dir, self) {
            (Some(folder), _) => folder.to_owned(),
            (None, Self::File(file)) => folder_of(file).to_owned(),
            (None, Self::Stdin) => std::env::temp_dir(),
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Unpacks an archive, its database to the path `database`, and checks everything that can be.
pub(super) async fn look(from: &From, database: PathBuf) -> anyhow::Result<(Unpacked, Checked)> {
    let unpacking = {
        let from = from.clone();
        tokio::task::spawn_blocking(move || unpack(&from, database))
    };
    let unpacked = unpacking.await?.with_context(|| from.name())?;
    let checked = check(&unpacked).await.with_context(|| from.name())?;
    Ok((unpacked, checked))
}

fn unpack(from: &From, database: PathBuf) -> anyhow::Result<Unpacked> {
    let mut progress = Progress::new();
    let watch = |done, all| progress.show("reading", done, all);
    Ok(match from {
        From::Stdin => archive::unpack(io::stdin().lock(), database, watch)?,
        From::File(path) => archive::unpack(File::open(path)?, database, watch)?,
    })
}

/// Of an archive that is what was written: is that a relay's?
async fn check(unpacked: &Unpacked) -> anyhow::Result<Checked> {
    let (found, known) = (unpacked.manifest.schema, newest_schema());
    if found > known {
        bail!(
            "made by the newer relay {} (schema {found}, this relay knows {known}); use that version",
            unpacked.manifest.relay_version
        );
    }
    let mut progress = Progress::new();
    progress.say("checking the database");
    let mut copy = Copy::open(&unpacked.database).await?;
    let faults = copy.faults().await?;
    if !faults.is_empty() {
        bail!("its database is damaged: {}", faults.join("; "));
    }
    if !copy.is_of(&unpacked.secret).await? {
        bail!(
            "its database was written with a different secret than the backup contains; without that secret the blobs are lost"
        );
    }
    let blobs = copy.contents().await?.blobs;
    let watch = |done| progress.show("checking blobs", done, blobs);
    let checked = copy.check_blobs(&unpacked.secret, watch).await?;
    copy.close().await;
    if checked.blobs != blobs {
        bail!(
            "its database has {} blobs, but its total says {blobs}",
            checked.blobs
        );
    }
    Ok(checked)
}

/// What is in it, in a line.
pub(super) fn summary(unpacked: &Unpacked) -> String {
    let manifest = &unpacked.manifest;
    format!(
        "as of {}, made by relay {}: {}, recovery proofs: {}, proven mailboxes: {}; database {}, schema {}; contains the relay's secret",
        manifest.created_at,
        manifest.relay_version,
        in_blobs(manifest.blobs),
        manifest.recovery_proofs,
        manifest.pins,
        in_bytes(manifest.database_bytes),
        manifest.schema,
    )
}

/// Blobs that had been damaged before they were backed up.
pub(super) fn told_of_damage(checked: Checked) -> String {
    format!(
        "{} of {} blobs do not match their checksum: they were damaged on the relay's disk before the backup; check that disk. The backup can still be restored; the relay does not deliver the damaged blobs",
        checked.damaged, checked.blobs
    )
}
