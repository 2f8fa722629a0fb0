//! What only this relay knows: its identity and its secret, and the keys made from them.
//!
//! Both lie in the data directory with mode 0600 and are made on the first start. Mailbox ids and
//! checksums at rest hang on the secret: a database restored without it would look empty, so the
//! store keeps [`Secret::check_value`] and refuses to open under another one.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chacha20poly1305::aead::Aead as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use highway::{HighwayHash as _, HighwayHasher, Key};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::filesystem;
use crate::filesystem::place::put_in_place;
use crate::identity::Identity;
use crate::ids::{BlobId, MailboxHash, MailboxId, Topic};

/// The file of the secret in the data directory: 64 hexadecimal digits.
pub const SECRET_FILE: &str = "relay.secret";

/// Random, so 24 bytes are enough never to repeat one.
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// The permissions of all users. A group may have some: container platforms give volumes to one.
const OTHERS: u32 = 0o007;

/// The relay's 32-byte secret. Its `Debug` prints nothing of it, and its memory is overwritten when it is
/// dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Secret {
    bytes: [u8; 32],
    mailbox_key: [u8; 32],
    device_mailbox_key: [u8; 32],
    recovery_key: [u8; 32],
    claimant_key: [u8; 32],
    index_key: [u8; 32],
    checksum_key: [u8; 32],
    guard_key: [u8; 32],
    row_key: [u64; 4],
    v1_blob_key: [u8; 32],
    topic_key: [u8; 32],
    receipt_id_key: [u8; 32],
    receipt_to_key: [u8; 32],
    seal_key: [u8; 32],
}

/// Sealed bytes that do not open: another mailbox, another secret, or a damaged row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed bytes cannot be decrypted with this mailbox id and secret")]
pub struct NotSealedHere;

/// Why the secret could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read or written; the system's own words are in the source.
    #[error("{}: {source}{}", path.display(), hint(source))]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file was named and is not there. It is not made: a named file that is missing is usually
    /// a secret that did not arrive, and blobs under a made-up one are lost when it does.
    #[error("{path}: is missing; put the relay's secret there, or create one for a new relay: (umask 077; openssl rand -hex 32 > {path})", path = .0.display())]
    Missing(PathBuf),
    /// Everybody on the machine may read or change the file. Refused, as ssh refuses such a key: who has
    /// read it once keeps it.
    #[error("{}: is accessible to all users (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is there and is not a secret.
    #[error("{}: is not a relay secret (64 hexadecimal digits); restore it from the backup", .0.display())]
    Malformed(PathBuf),
}

/// What to do about it, where that can be told.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the relay's user must own the file and its folder",
        _ => "",
    }
}

impl Secret {
    /// The secret with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let key = |context: &str| blake3::derive_key(context, &bytes);
        Self {
            bytes,
            mailbox_key: key("vauchi-relay 2026-11 mailbox hash"),
            device_mailbox_key: key("vauchi-relay 2026-11 mailbox hash of a device"),
            recovery_key: key("vauchi-relay 2026-11 hash of a recovery key"),
            claimant_key: key("vauchi-relay 2026-11 hash of an id that is only claimed"),
            index_key: key("vauchi-relay 2026-11 index prefix of blob ids"),
            checksum_key: key("vauchi-relay 2026-11 checksum of rows"),
            guard_key: key("vauchi-relay 2026-11 guard of rows"),
            row_key: words(key("vauchi-relay 2026-12 HighwayHash of rows")),
            v1_blob_key: key("vauchi-relay 2026-11 blob id of protocol v1"),
            topic_key: key("vauchi-relay 2026-11 hash of topics"),
            receipt_id_key: key("vauchi-relay 2026-11 id of a receipt"),
            receipt_to_key: key("vauchi-relay 2026-11 sealing of receipt mailboxes"),
            seal_key: key("vauchi-relay 2026-11 sealing under a plain id"),
        }
    }

    /// A fresh random secret, kept nowhere: for the memory engine.
    pub fn random() -> Self {
        Self::from_bytes(rand::random())
    }

    /// The secret in the text of its file.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(crate::ids::parse_hex(text.trim()).ok()?);
        Some(Self::from_bytes(*bytes))
    }

    /// The text of its file. Only for that file and for a backup of it.
    pub fn file_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(data_encoding::HEXLOWER.encode(&self.bytes));
        Zeroizing::new(format!("{}\n", *digits))
    }

    /// Reads the secret from `path`.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let read = fs::File::open(path).and_then(|mut file| {
            let mut text = Zeroizing::new(String::new());
            file.read_to_string(&mut text)?;
            Ok((text, file.metadata()?.mode() & 0o777))
        });
        match read {
            Ok((_, mode)) if mode & OTHERS != 0 && !filesystem::is_mounted_secret(path) => {
                let path = path.to_owned();
                Err(SecretError::Exposed { path, mode })
            }
            Ok((text, _)) => {
                Self::parse(&text).ok_or_else(|| SecretError::Malformed(path.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SecretError::Missing(path.to_owned()))
            }
            Err(source) => Err(SecretError::File {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the secret from `path`, or makes one there with mode 0600 when the file is missing.
    ///
    /// A new secret is fsynced, file and directory, before it is used: blobs stored under a secret
    /// that a power cut takes away would be lost.
    pub fn load_or_create(path: &Path) -> Result<Self, SecretError> {
        match Self::load(path) {
            Err(SecretError::Missing(_)) => {
                let secret = Self::random();
                match secret.write_new(path) {
                    Ok(()) => Ok(secret),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
                    Err(source) => Err(SecretError::File {
                        path: path.to_owned(),
                        source,
                    }),
                }
            }
            loaded => loaded,
        }
    }

    /// Writes the secret to a file that is not there yet, with mode 0600; file and folder are fsynced.
    pub fn write_new(&self, path: &Path) -> io::Result<()> {
        let text = self.file_text();
        // Written beside, under a name of its own, and then put in place: a start that is killed in the
        // middle leaves no half of a secret, and of two starts at once one is first. The draft is ours
        // once it is opened, and is removed also when it cannot be written.
        let draft = path.with_extension(format!("{:016x}.draft", rand::random::<u64>()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        let placed = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| put_in_place(&draft, path));
        match fs::remove_file(&draft) {
            // Renamed where there are no links.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => placed,
        }
    }

    /// The relay's key pair: who it is to v2 clients. Relays that share a secret are one relay.
    ///
    /// The Ed25519 key is derived from the secret, so there is one file to keep and to restore.
    pub fn identity(&self) -> Identity {
        let context = "vauchi-relay 2026-11 Ed25519 identity";
        let seed = Zeroizing::new(blake3::derive_key(context, &self.bytes));
        Identity::from_seed(&seed)
    }

    /// The mailbox as the store knows it.
    pub fn mailbox(&self, id: &MailboxId) -> MailboxHash {
        MailboxHash::from_bytes(*blake3::keyed_hash(&self.mailbox_key, id.as_bytes()).as_bytes())
    }

    /// The mailbox in which messages from an identity's other devices wait for this one.
    pub fn device_mailbox(&self, identity: &MailboxId, device: &MailboxId) -> MailboxHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.device_mailbox_key);
        hasher.update(identity.as_bytes()).update(device.as_bytes());
        MailboxHash::from_bytes(*hasher.finalize().as_bytes())
    }

    /// The hash of a recovery key as the store knows it. What is stored under it is sealed under
    /// the plain one ([`Secret::seal`]).
    pub fn recovery_key(&self, key_hash: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(&self.recovery_key, key_hash).as_bytes()
    }

    /// Whoever says to be this id and has not proved it: as an owner another than who has.
    pub fn claimant(&self, id: &MailboxId) -> MailboxHash {
        MailboxHash::from_bytes(*blake3::keyed_hash(&self.claimant_key, id.as_bytes()).as_bytes())
    }

    /// What the store compares on opening, so that a database is never read under another secret.
    pub fn check_value(&self) -> [u8; 16] {
        truncated(blake3::keyed_hash(
            &self.bytes,
            b"vauchi-relay secret check value",
        ))
    }

    /// The first 64 bits of the keyed hash of a blob id. Keyed, because v2 senders choose their ids
    /// and could otherwise choose ids that collide.
    pub fn id64(&self, id: &BlobId) -> i64 {
        i64::from_be_bytes(truncated(blake3::keyed_hash(
            &self.index_key,
            id.as_bytes(),
        )))
    }

    /// The checksum of a row over (mailbox hash, id, body as the sender sent it), by HighwayHash under a key
    /// that never leaves the relay: damage is found, and no sender can aim at the checksum of another
    /// body. It costs a tenth of BLAKE3, which is what a store spent most of its time on.
    pub fn checksum(&self, mailbox: &MailboxHash, id: &BlobId, body: &[u8]) -> [u8; 16] {
        let mut hasher = HighwayHasher::new(Key(self.row_key));
        hasher.append(mailbox.as_bytes());
        hasher.append(id.as_bytes());
        hasher.append(body);
        let [high, low] = hasher.finalize128();
        ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
    }

    /// Whether this is the checksum of a row, as it is written now or as release 0.1 wrote it, by BLAKE3.
    pub fn is_checksum(
        &self,
        checksum: &[u8; 16],
        (mailbox, id): (&MailboxHash, &BlobId),
        body: &[u8],
    ) -> bool {
        let first = || {
            let mut hasher = blake3::Hasher::new_keyed(&self.checksum_key);
            hasher.update(mailbox.as_bytes()).update(id.as_bytes());
            truncated(hasher.update(body).finalize())
        };
        *checksum == self.checksum(mailbox, id, body) || *checksum == first()
    }

    /// The guard of a row over its checksum and `parts`, which the caller lays out so that no two rows
    /// have the same.
    pub fn guard(&self, checksum: &[u8; 16], parts: &[&[u8]]) -> [u8; 8] {
        let mut hasher = HighwayHasher::new(Key(self.row_key));
        hasher.append(checksum);
        for part in parts {
            hasher.append(part);
        }
        hasher.finalize64().to_be_bytes()
    }

    /// Whether this is the guard of a row, as it is written now or as the first guards were, by BLAKE3.
    pub fn is_guard(&self, guard: &[u8; 8], checksum: &[u8; 16], parts: &[&[u8]]) -> bool {
        let first = || {
            let mut hasher = blake3::Hasher::new_keyed(&self.guard_key);
            hasher.update(checksum);
            for part in parts {
                hasher.update(part);
            }
            truncated(hasher.finalize())
        };
        *guard == self.guard(checksum, parts) || *guard == first()
    }

    /// Seals what must be given back, under a key from a *plain* id (a mailbox, or the hash of a
    /// recovery key) and the secret: only who names that id again, and this relay, open it. A
    /// stolen database with its secret, but without the ids, does not.
    pub fn seal(&self, id: &[u8; 32], plain: &[u8]) -> Bytes {
        seal(&self.sealer(id), plain).into()
    }

    /// Opens what [`Secret::seal`] sealed under this id.
    pub fn unseal(&self, id: &[u8; 32], sealed: &[u8]) -> Result<Vec<u8>, NotSealedHere> {
        unseal(&self.sealer(id), sealed)
    }

    /// Seals where a blob's receipts go, under a key from the secret alone: a blob expires, or is
    /// found corrupt, when nobody has named either mailbox.
    pub fn seal_receipt_to(&self, mailbox: &MailboxHash) -> Vec<u8> {
        seal(&self.receipt_sealer(), mailbox.as_bytes())
    }

    /// Opens what [`Secret::seal_receipt_to`] sealed.
    pub fn unseal_receipt_to(&self, sealed: &[u8]) -> Result<MailboxHash, NotSealedHere> {
        let plain = unseal(&self.receipt_sealer(), sealed)?;
        let bytes = plain.try_into().map_err(|_| NotSealedHere)?;
        Ok(MailboxHash::from_bytes(bytes))
    }

    fn receipt_sealer(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&self.receipt_to_key).into())
    }

    /// The topic of a blob, within its mailbox.
    pub fn topic(&self, mailbox: &MailboxId, topic: &[u8; 32]) -> Topic {
        let mut hasher = blake3::Hasher::new_keyed(&self.topic_key);
        hasher.update(mailbox.as_bytes()).update(topic);
        Topic::from_prefix64(i64::from_be_bytes(truncated(hasher.finalize())))
    }

    /// The id of the receipt that tells this of the blob `id` of `mailbox`.
    pub fn receipt_id(&self, mailbox: &MailboxHash, id: &BlobId, kind: u8) -> BlobId {
        let mut hasher = blake3::Hasher::new_keyed(&self.receipt_id_key);
        hasher
            .update(mailbox.as_bytes())
            .update(id.as_bytes())
            .update(&[kind]);
        BlobId::from_bytes(truncated(hasher.finalize()))
    }

    fn sealer(&self, id: &[u8; 32]) -> XChaCha20Poly1305 {
        let key = blake3::keyed_hash(&self.seal_key, id);
        XChaCha20Poly1305::new(key.as_bytes().into())
    }

    /// The blob id of a v1 submit: the same bytes from the same client to the same mailbox are the
    /// same blob, anything else is another one (`protocol-v1.md`, Idempotency).
    pub fn v1_blob_id(
        &self,
        message_id: &str,
        client_id: &MailboxId,
        recipient: &MailboxId,
        body: &[u8],
    ) -> BlobId {
        // A frame is bounded far below 4 GiB, so the length always fits.
        let message_id_bytes = u32::try_from(message_id.len()).unwrap_or(u32::MAX);
        let mut hasher = blake3::Hasher::new_keyed(&self.v1_blob_key);
        hasher
            .update(&message_id_bytes.to_be_bytes())
            .update(message_id.as_bytes())
            .update(client_id.as_bytes())
            .update(recipient.as_bytes())
            .update(body);
        BlobId::from_bytes(truncated(hasher.finalize()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The nonce, and what the cipher makes of `plain`.
fn seal(cipher: &XChaCha20Poly1305, plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let mut sealed = Vec::with_capacity(NONCE_BYTES + plain.len() + TAG_BYTES);
    sealed.extend_from_slice(&nonce);
    // Encryption fails only for plaintexts of 256 GiB.
    let body = cipher.encrypt(&XNonce::from(nonce), plain);
    sealed.extend_from_slice(&body.unwrap_or_default());
    sealed
}

fn unseal(cipher: &XChaCha20Poly1305, sealed: &[u8]) -> Result<Vec<u8>, NotSealedHere> {
    let (nonce, body) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(NotSealedHere)?;
    cipher
        .decrypt(&XNonce::from(*nonce), body)
        .map_err(|_| NotSealedHere)
}

/// The key of a HighwayHash in 32 bytes.
fn words(key: [u8; 32]) -> [u64; 4] {
    let (words, _) = key.as_chunks::<8>();
    [0, 1, 2, 3].map(|place| u64::from_be_bytes(words[place]))
}

fn truncated<const N: usize>(hash: blake3::Hash) -> [u8; N] {
    let mut short = [0; N];
    short.copy_from_slice(&hash.as_bytes()[..N]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_new_secret_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SECRET_FILE);
        let made = Secret::load_or_create(&path).unwrap();
        let read = Secret::load_or_create(&path).unwrap();
        assert_eq!(made.check_value(), read.check_value());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_secret_that_all_users_may_read_is_refused_and_one_of_a_group_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SECRET_FILE);
        Secret::load_or_create(&path).unwrap();
        for (mode, is_taken) in [
            (0o600, true),
            (0o440, true),
            (0o660, true),
            (0o604, false),
            (0o644, false),
            (0o602, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = Secret::load_or_create(&path);
            assert_eq!(loaded.is_ok(), is_taken, "{mode:o}");
            if let Err(error) = loaded {
                let line = format!("(mode {mode:03o}); run: chmod 600 {}", path.display());
                assert!(error.to_string().contains(&line), "{error}");
            }
        }
    }

    #[test]
    fn a_secret_is_wiped_when_it_is_dropped() {
        const fn is_wiped<T: ZeroizeOnDrop>() {}
        is_wiped::<Secret>();
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SECRET_FILE);
        fs::write(&path, "hello").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Secret::load_or_create(&path),
            Err(SecretError::Malformed(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
    }

    #[test]
    fn a_secret_of_somebody_else_is_told_with_what_to_do() {
        let denied = SecretError::File {
            path: PathBuf::from("/data/relay.secret"),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(
            denied
                .to_string()
                .ends_with("; the relay's user must own the file and its folder")
        );
    }

    #[test]
    fn a_named_secret_that_is_missing_is_not_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("named");
        let error = Secret::load(&path).unwrap_err();
        assert!(matches!(error, SecretError::Missing(_)));
        assert!(error.to_string().contains("openssl rand -hex 32 > "));
        assert!(!path.exists());
    }

    #[test]
    fn sealed_bytes_open_under_their_id_and_secret_only() {
        let secret = Secret::from_bytes([7; 32]);
        let sealed = secret.seal(&[1; 32], b"a sender");
        assert_eq!(secret.unseal(&[1; 32], &sealed).unwrap(), b"a sender");
        assert_eq!(secret.unseal(&[2; 32], &sealed), Err(NotSealedHere));
        assert_eq!(
            Secret::from_bytes([8; 32]).unseal(&[1; 32], &sealed),
            Err(NotSealedHere)
        );
        assert_eq!(secret.unseal(&[1; 32], &sealed[..20]), Err(NotSealedHere));
        assert_ne!(
            sealed,
            secret.seal(&[1; 32], b"a sender"),
            "a fresh nonce each time"
        );
    }

    #[test]
    fn a_receipt_mailbox_opens_under_the_secret_alone() {
        let secret = Secret::from_bytes([7; 32]);
        let mailbox = MailboxHash::from_bytes([3; 32]);
        let sealed = secret.seal_receipt_to(&mailbox);
        assert_eq!(secret.unseal_receipt_to(&sealed).unwrap(), mailbox);
        assert_ne!(sealed, secret.seal_receipt_to(&mailbox));
        let other = Secret::from_bytes([8; 32]);
        assert_eq!(other.unseal_receipt_to(&sealed), Err(NotSealedHere));
        let another = secret.seal(&[3; 32], mailbox.as_bytes());
        assert_eq!(secret.unseal_receipt_to(&another), Err(NotSealedHere));
    }

    #[test]
    fn topics_and_receipt_ids_change_with_every_part() {
        let secret = Secret::from_bytes([7; 32]);
        let [a, b] = [1, 2].map(|byte| MailboxId::from_bytes([byte; 32]));
        let topic = secret.topic(&a, &[1; 32]);
        assert_eq!(topic, secret.topic(&a, &[1; 32]));
        assert_ne!(topic, secret.topic(&b, &[1; 32]));
        assert_ne!(topic, secret.topic(&a, &[2; 32]));
        let (a, b) = (secret.mailbox(&a), secret.mailbox(&b));
        let [one, two] = [1, 2].map(|byte| BlobId::from_bytes([byte; 16]));
        let id = secret.receipt_id(&a, &one, 1);
        assert_ne!(id, secret.receipt_id(&b, &one, 1));
        assert_ne!(id, secret.receipt_id(&a, &two, 1));
        assert_ne!(id, secret.receipt_id(&a, &one, 2));
    }

    #[test]
    fn a_device_has_a_mailbox_of_its_own_under_each_identity() {
        let secret = Secret::from_bytes([7; 32]);
        let (a, b) = (
            MailboxId::from_bytes([1; 32]),
            MailboxId::from_bytes([2; 32]),
        );
        let mailbox = secret.device_mailbox(&a, &b);
        assert!(mailbox == secret.device_mailbox(&a, &b));
        assert!(mailbox != secret.device_mailbox(&b, &a));
        assert!(mailbox != secret.device_mailbox(&a, &a));
        assert!(secret.mailbox(&a) != secret.device_mailbox(&a, &a));
        assert!(secret.mailbox(&a) != secret.claimant(&a));
        assert_ne!(
            secret.recovery_key(&[1; 32]),
            *secret.mailbox(&a).as_bytes()
        );
    }

    #[test]
    fn a_v1_blob_id_changes_with_every_part() {
        let secret = Secret::from_bytes([7; 32]);
        let (a, b) = (
            MailboxId::from_bytes([1; 32]),
            MailboxId::from_bytes([2; 32]),
        );
        let id = secret.v1_blob_id("m", &a, &b, b"x");
        assert_eq!(id, secret.v1_blob_id("m", &a, &b, b"x"));
        for other in [
            secret.v1_blob_id("n", &a, &b, b"x"),
            secret.v1_blob_id("m", &b, &b, b"x"),
            secret.v1_blob_id("m", &a, &a, b"x"),
            secret.v1_blob_id("m", &a, &b, b"y"),
            secret.v1_blob_id("mx", &a, &b, b""),
        ] {
            assert_ne!(id, other);
        }
    }
}
