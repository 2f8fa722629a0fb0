//! `vauchi-relay recovery put` and `get`: proofs under the hash of a lost key.

use std::path::PathBuf;

use anyhow::Context;
use data_encoding::HEXLOWER;
use serde_json::json;

use super::connect::{Relays, explained, open, parse_32_bytes, read_file};
use super::folder::Folder;
use super::receive::print;
use super::{interrupted, keygen, say};
use crate::client::{FoundProof, Receipts};

/// Store a recovery proof under the hash of a lost key, or look such proofs up.
///
/// The relay cannot verify proofs, because the key is lost: it keeps one proof per mailbox, at most
/// eight per hash, for 90 days, and returns all of them. Verify them yourself.
///
/// Exit codes: 0 done, also if `get` finds no proof; 1 an error, with the reason on stderr; 2 invalid
/// arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Put(PutArgs),
    Get(GetArgs),
}

/// Store a proof. It replaces an earlier one of the same mailbox.
#[derive(Debug, clap::Args)]
struct PutArgs {
    #[command(flatten)]
    relays: Relays,

    /// The hash of the lost key, 64 hexadecimal digits
    #[arg(value_name = "HASH", value_parser = parse_32_bytes)]
    hash: [u8; 32],

    /// File with the proof; standard input without it, or for `-`
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,

    /// Key file of the mailbox that stores the proof, made by `keygen`
    #[arg(long, value_name = "KEYFILE")]
    key: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Print the stored proofs, newest first.
#[derive(Debug, clap::Args)]
struct GetArgs {
    #[command(flatten)]
    relays: Relays,

    /// The hashes of lost keys, 64 hexadecimal digits each; at most 50
    #[arg(value_name = "HASH", required = true, num_args = 1..=50, value_parser = parse_32_bytes)]
    hashes: Vec<[u8; 32]>,

    /// Write each proof to a file in this folder, instead of to standard output; no file is overwritten
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print one JSON object per line and proof, instead of the proofs
    #[arg(long)]
    json: bool,
}

/// Puts or gets.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Put(args) => put(args).await,
        Command::Get(args) => tokio::select! {
            // First, so that the signal is caught before anything is there to be left behind.
            biased;
            error = interrupted() => Err(error),
            got = get(args) => got,
        },
    }
}

async fn put(args: PutArgs) -> anyhow::Result<()> {
    let key = keygen::read(&args.key)?;
    let proof = read_file(&args.file).await?;
    let client = args.relays.connect(args.relays.options()).await?;
    open(&client, std::slice::from_ref(&key), Receipts::None).await?;
    let kept = client.put_recovery(args.hash, proof).await;
    let expires_at = kept.map_err(|error| explained("the relay did not store the proof", error))?;
    client.close().await.ok();
    let hash = HEXLOWER.encode(&args.hash);
    match args.json {
        true => say::line(json!({ "key_hash": hash, "expires_at": expires_at.millis() })),
        false => say::line(format_args!("kept {hash}")),
    }
}

async fn get(args: GetArgs) -> anyhow::Result<()> {
    let folder = args.out.as_deref().map(Folder::open).transpose()?;
    let client = args.relays.connect(args.relays.options()).await?;
    let found = client.get_recovery(&args.hashes).await;
    let found = found.map_err(|error| explained("cannot look up the proofs", error))?;
    client.close().await.ok();
    for (number, proof) in found.proofs.iter().enumerate() {
        args.keep(number, proof, folder.as_ref()).await?;
    }
    if found.is_cut {
        anyhow::bail!("more proofs exist than fit into one answer; ask for fewer hashes");
    }
    Ok(())
}

impl Args {
    pub(super) fn is_json(&self) -> bool {
        match &self.command {
            Command::Put(args) => args.json,
            Command::Get(args) => args.json,
        }
    }
}

impl GetArgs {
    async fn keep(
        &self,
        number: usize,
        found: &FoundProof,
        folder: Option<&Folder>,
    ) -> anyhow::Result<()> {
        let hash = HEXLOWER.encode(&found.key_hash);
        let file = match folder {
            Some(folder) => {
                let name = format!("{hash}-{number}");
                Some(folder.put(&name, found.proof.clone()).await?)
            }
            None => None,
        };
        if self.json {
            let proof = file.is_none().then(|| HEXLOWER.encode(&found.proof));
            let said = json!({
                "key_hash": hash,
                "stored_at": found.stored_at.millis(),
                "bytes": found.proof.len(),
                "proof": proof,
                "file": file,
            });
            say::line(said)
        } else if file.is_some() {
            Ok(())
        } else {
            print(&found.proof).context(say::NOT_WRITTEN)
        }
    }
}
