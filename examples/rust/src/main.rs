//! Sends and receives end-to-end encrypted texts through a relay, with the relay's client library.
//!
//!     cargo run -- address                    prints your address, which others send to; makes me.key
//!     cargo run -- receive [--follow]
//!     cargo run -- send --to ADDRESS hello

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Parser, Subcommand};
use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use vauchi_relay::client::{Blob, Client, Event, MailboxId, MailboxKey, Options, Receipts};
use x25519_dalek::{PublicKey, StaticSecret};

#[derive(Parser)]
struct Given {
    #[arg(long, global = true, default_value = "ws://127.0.0.1:8080")]
    relay: String,
    #[arg(long, global = true, default_value = "me.key")]
    key: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print your address, which others send to
    Address,
    /// Print waiting texts, and delete them at the relay
    Receive {
        /// Keep running, and print new texts as they come
        #[arg(long)]
        follow: bool,
    },
    /// Encrypt a text and send it to the relay
    Send {
        /// The recipient's address
        #[arg(long)]
        to: String,
        /// Clients of protocol v1 may receive it, too
        #[arg(long)]
        v1_ok: bool,
        text: String,
    },
}

/// A device's private keys: one opens its mailbox, the other decrypts its texts.
struct Keys {
    mailbox: MailboxKey,
    sealing: StaticSecret,
}

impl Keys {
    fn open(path: &Path) -> Result<Self> {
        let fresh = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        if let Ok(mut file) = fresh {
            file.write_all(HEX.encode(&rand::random::<[u8; 64]>()).as_bytes())?;
        }
        let kept = std::fs::read(path).with_context(|| path.display().to_string())?;
        let (mailbox, sealing) = halves(&kept).context("this is no key file of this example")?;
        Ok(Self { mailbox: MailboxKey::ed25519(mailbox), sealing: sealing.into() })
    }

    fn address(&self) -> Address {
        Address { mailbox: self.mailbox.mailbox(), sealing: (&self.sealing).into() }
    }
}

/// Others need this to write to us: the mailbox, and the public key to encrypt for.
struct Address {
    mailbox: MailboxId,
    sealing: PublicKey,
}

impl Address {
    fn parse(hex: &str) -> Result<Self> {
        let (mailbox, sealing) = halves(hex.as_bytes()).context("an address is 128 hex digits")?;
        Ok(Self { mailbox: MailboxId::from_bytes(mailbox), sealing: sealing.into() })
    }

    fn bytes(&self) -> Vec<u8> {
        [*self.mailbox.as_bytes(), self.sealing.to_bytes()].concat()
    }
}

fn halves(hex: &[u8]) -> Result<([u8; 32], [u8; 32])> {
    let bytes = HEX.decode(hex.trim_ascii())?;
    ensure!(bytes.len() == 64, "{} bytes", bytes.len());
    Ok((bytes[..32].try_into()?, bytes[32..].try_into()?))
}

/// The cipher of one text. `sender` is made for this text only, so the key never returns, and its nonce may be 0.
fn cipher(shared: &[u8; 32], sender: &PublicKey, to: &Address) -> Result<Aes256Gcm> {
    let info = [b"vauchi-relay example text".as_slice(), sender.as_bytes(), &to.bytes()].concat();
    let mut key = [0; 32];
    let derived = hkdf::Hkdf::<sha2::Sha256>::new(None, shared).expand(&info, &mut key);
    derived.map_err(|error| anyhow!("{error}"))?;
    Ok(Aes256Gcm::new(&key.into()))
}

fn seal(text: &str, to: &Address) -> Result<Vec<u8>> {
    let once = StaticSecret::from(rand::random::<[u8; 32]>());
    let (sender, shared) = (PublicKey::from(&once), once.diffie_hellman(&to.sealing));
    let sealed = cipher(shared.as_bytes(), &sender, to)?.encrypt(&[0; 12].into(), text.as_bytes());
    Ok([sender.as_bytes(), &sealed.map_err(|_| anyhow!("too long"))?[..]].concat())
}

fn unseal(blob: &[u8], keys: &Keys) -> Result<String> {
    let (sender, sealed) = blob.split_first_chunk::<32>().context("too short")?;
    let sender = PublicKey::from(*sender);
    let shared = keys.sealing.diffie_hellman(&sender);
    let cipher = cipher(shared.as_bytes(), &sender, &keys.address())?;
    let text = cipher.decrypt(&[0; 12].into(), sealed).map_err(|_| anyhow!("not for us"))?;
    Ok(String::from_utf8(text)?)
}

async fn receive(client: &Client, keys: &Keys, follow: bool) -> Result<()> {
    client.open(&keys.mailbox, Receipts::None).await?;
    while let Some(event) = client.next().await {
        match event {
            Event::Blob(blob) => {
                let bytes = blob.body.len();
                let text = unseal(&blob.body, keys);
                println!(
                    "{}",
                    text.unwrap_or_else(|_| format!("(a blob of {bytes} bytes that is not for us)"))
                );
                // Acknowledge only after saving the text: the relay deletes it. Acknowledge blobs that we cannot use, too.
                client.acknowledge(blob.item).await?;
            }
            Event::CaughtUp(_) if !follow => break,
            // No more events come from a closed mailbox, so waiting would never end.
            Event::Closed { why, .. } => return Err(anyhow!(why).context("the mailbox is closed")),
            Event::CaughtUp(_) | Event::Receipt(_) => {}
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given = Given::parse();
    let mut options = Options::new([given.relay]);
    // The other examples do not pad blobs and do not expect padding.
    options.pads = false;
    match given.command {
        Command::Address => println!("{}", HEX.encode(&Keys::open(&given.key)?.address().bytes())),
        Command::Receive { follow } => {
            let (client, keys) = (Client::connect(options).await?, Keys::open(&given.key)?);
            receive(&client, &keys, follow).await?;
            client.close().await?;
        }
        Command::Send { to, v1_ok, text } => {
            let (client, to) = (Client::connect(options).await?, Address::parse(&to)?);
            let mut blob = Blob::new(to.mailbox, seal(&text, &to)?);
            blob.terms.v1_ok = v1_ok;
            // The library reconnects by itself; when this returns, the blob is on the relay's disk.
            client.submit(&blob).await?;
            client.close().await?;
        }
    }
    Ok(())
}
