//! What a store takes, keeps and gives back.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash, Topic};

pub use super::usage::{Kept, Usage};

/// What each row costs beside its body: the row, its index entries and its departure.
/// Counted for the mailbox and for the relay alike, because empty blobs fill disks too.
pub const ROW_OVERHEAD_BYTES: u64 = 256;

/// Who may see a blob. The numbers are stored; they are never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Submitted through v1 (or marked so): everyone who opens the mailbox sees it.
    SeenByV1 = 0,
    /// Submitted through v2: only subscribers who proved possession see it.
    ProvenOnly = 1,
    /// What became of a blob, told to its sender ([`Receipt`]): a row of the receipt mailbox, for
    /// subscribers who proved possession. The store makes these itself.
    Receipt = 2,
    /// From one device of an identity to another; has an [`Owner`].
    DeviceSync = 3,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; Self::NUMBERS] = [
        Self::SeenByV1,
        Self::ProvenOnly,
        Self::Receipt,
        Self::DeviceSync,
    ];

    /// One more than the largest number, for tables that are indexed by it.
    pub const NUMBERS: usize = 4;

    /// The class with this number; `None` for one that this build does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u8 == number)
    }
}

/// What a session may see of a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// A v1 session: what was submitted through v1.
    V1,
    /// A subscriber who proved possession: every blob, and every receipt.
    Proven,
    /// A device of an identity: what its other devices sent it.
    DeviceSync,
}

impl View {
    /// Whether blobs of this class are shown.
    pub fn shows(self, class: Class) -> bool {
        match self {
            Self::V1 => class == Class::SeenByV1,
            Self::Proven => class != Class::DeviceSync,
            Self::DeviceSync => class == Class::DeviceSync,
        }
    }
}

/// Whose a device sync message is, and where it stands among the others of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The keyed hash of the identity ([`crate::secrets::Secret::mailbox`]).
    pub hash: MailboxHash,
    /// The sender's counter: what waits comes in its order.
    pub version: u64,
}

/// A blob on its way in: with its mailbox, its id and its time to live.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Where it waits.
    pub mailbox: MailboxHash,
    /// Its id within the mailbox.
    pub id: BlobId,
    /// Who may see it.
    pub class: Class,
    /// Given exactly for [`Class::DeviceSync`].
    pub owner: Option<Owner>,
    /// It replaces the blob of the same mailbox and topic that was not acknowledged. Not for device
    /// sync.
    pub topic: Option<Topic>,
    /// In which mailbox its sender hears what became of it, if at all. Not for device sync.
    pub receipt_to: Option<MailboxHash>,
    /// When it was handed in: now.
    pub stored_at: Timestamp,
    /// From this moment on it is never delivered.
    pub expires_at: Timestamp,
    /// What protocol v1 must give back beside the body, sealed; empty when there is nothing.
    pub sealed: Bytes,
    /// The blob itself, never looked into.
    pub body: Bytes,
}

impl Envelope {
    /// What it counts against quotas.
    pub fn charged_bytes(&self) -> u64 {
        charged_bytes(self.sealed.len() + self.body.len())
    }
}

/// What a row with `bytes` of body and sealed fields counts against quotas.
pub fn charged_bytes(bytes: usize) -> u64 {
    bytes as u64 + ROW_OVERHEAD_BYTES
}

/// What became of a blob that was handed in. Anything but these is a `StoreError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is durable.
    Stored {
        /// When it expires.
        expires_at: Timestamp,
    },
    /// The very same blob is there, or was until a short time ago; nothing was stored.
    Duplicate {
        /// When the first one expires or would have.
        expires_at: Timestamp,
    },
    /// Another blob is or was known under this id in this mailbox.
    IdReused,
    /// The mailbox, or of a device sync message its owner, holds as many blobs or bytes as it may.
    MailboxFull,
    /// The relay holds as many bytes as it may, or the disk is nearly full.
    RelayFull,
}

/// Where a blob stands in the order of the relay. Later blobs have larger keys; none is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OrderKey(pub i64);

impl OrderKey {
    /// Before every blob.
    pub const START: Self = Self(0);
}

/// A blob on its way out.
#[derive(Debug, Clone)]
pub struct StoredBlob {
    /// Its place in the order.
    pub key: OrderKey,
    /// Its id within the mailbox.
    pub id: BlobId,
    /// Who may see it.
    pub class: Class,
    /// Of a device sync message: the version that its sender gave it.
    pub version: Option<u64>,
    /// Whether its sender asked to hear what becomes of it.
    pub wants_receipts: bool,
    /// Whether its sender has been told that it was delivered.
    pub is_delivered_told: bool,
    /// When it was handed in.
    pub stored_at: Timestamp,
    /// From this moment on it is never delivered.
    pub expires_at: Timestamp,
    /// What was sealed beside it; empty when there was nothing.
    pub sealed: Bytes,
    /// The blob.
    pub body: Bytes,
}

impl StoredBlob {
    /// What it says, when it is a receipt.
    pub fn receipt(&self) -> Option<Receipt> {
        (self.class == Class::Receipt).then(|| Receipt::parse(&self.body))?
    }
}

/// Who has a mailbox open: what it may see and so acknowledge, and whether its senders hear of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opener {
    /// What it may see.
    pub view: View,
    /// Whether senders hear of what it does.
    pub tells: Tells,
}

/// Whether the senders of blobs that asked for receipts hear of this: whoever took the blobs says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// Those who asked hear of it.
    Senders,
    /// Nobody does.
    Nobody,
}

/// What one mailbox holds for one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Rows that wait to be delivered, counted up to [`Holding::PENDING_MAX`]. What expired less
    /// than ten minutes ago may be among them.
    pub pending: u32,
    /// Rows that count against its quota.
    pub blobs: u64,
    /// Their charged bytes.
    pub bytes: u64,
}

impl Holding {
    /// Up to how many rows that wait are counted.
    pub const PENDING_MAX: u32 = 1_000;
}

/// How much a page may hold. At least one blob is returned, however large, when there is one.
#[derive(Debug, Clone, Copy)]
pub struct PageBounds {
    /// Blobs at the most.
    pub blobs_max: u32,
    /// Bytes of bodies and sealed fields at the most.
    pub bytes_max: u64,
}

/// Where a reader stands in what waited for a device when it connected: by version, then by
/// arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BacklogCursor {
    /// The last message that belongs to the backlog. The first page sets it; when there are no more
    /// pages, what came later is read with [`super::Store::page`] after this key.
    pub up_to: OrderKey,
    /// The version of the last message that was passed.
    pub version: u64,
    /// Its key.
    pub key: OrderKey,
}

impl BacklogCursor {
    /// Before everything, with the end still to be set.
    pub const START: Self = Self {
        up_to: OrderKey::START,
        version: 0,
        key: OrderKey::START,
    };

    /// In the same backlog, at the message with this version and key.
    pub fn at(self, version: u64, key: OrderKey) -> Self {
        Self {
            version,
            key,
            ..self
        }
    }
}

/// The next blobs of a mailbox; `C` is where a reader stands in it.
#[derive(Debug, Clone, Default)]
pub struct Page<C = OrderKey> {
    /// In order.
    pub blobs: Vec<StoredBlob>,
    /// Where the next page begins: pass it as `after`. It also passes over blobs that the view may
    /// not see and expired ones. Equal to `after` when there was nothing.
    pub next: C,
    /// Whether there was more when this page was read.
    pub more: More,
}

impl<C> Page<C> {
    /// The page behind `after` of rows that come in order: each with where it leaves the reader, and
    /// `None` for one that is not shown. Reads no further than the first one that does not fit.
    pub fn of(
        after: C,
        rows: impl Iterator<Item = (C, Option<StoredBlob>)>,
        bounds: PageBounds,
    ) -> Self {
        let mut page = Self {
            blobs: Vec::new(),
            next: after,
            more: More::No,
        };
        let mut bytes: u64 = 0;
        for (cursor, blob) in rows {
            if let Some(blob) = blob {
                bytes = bytes.saturating_add((blob.sealed.len() + blob.body.len()) as u64);
                let is_full = page.blobs.len() as u64 >= u64::from(bounds.blobs_max)
                    || bytes > bounds.bytes_max;
                if is_full && !page.blobs.is_empty() {
                    page.more = More::Yes;
                    break;
                }
                page.blobs.push(blob);
            }
            page.next = cursor;
        }
        page
    }
}

/// Whether there is something after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum More {
    /// Nothing, until a wake.
    #[default]
    No,
    /// The next page has something.
    Yes,
    /// There is something that cannot be shown yet; look again after a rest.
    Soon,
}

impl More {
    /// Whether there is anything, now or soon.
    pub fn is_any(self) -> bool {
        self != Self::No
    }
}

/// How much a write took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Blobs, or device sync messages.
    pub blobs: u64,
    /// Receipts.
    pub receipts: u64,
}

impl Removed {
    /// One row more of this class.
    pub(super) fn add(&mut self, class: Class) {
        match class {
            Class::Receipt => self.receipts += 1,
            Class::SeenByV1 | Class::ProvenOnly | Class::DeviceSync => self.blobs += 1,
        }
    }

    /// Rows of either kind.
    pub fn rows(self) -> u64 {
        self.blobs + self.receipts
    }
}

/// What one step of the sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Expired rows deleted: blobs, device sync messages and receipts.
    pub blobs: u64,
    /// Whether another step would find more.
    pub more: bool,
    /// When the next blob expires, give or take one slot of the index; known when there is no more.
    pub next_expiry: Option<Timestamp>,
}

/// What one slice of the scrub came to.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    /// Where the next slice begins; `None` when everything was looked at.
    pub next: Option<OrderKey>,
    /// Rows that were looked at.
    pub rows: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Rows that an index did not find as they are, and finds now, each with its mailbox.
    pub mended: Vec<(MailboxHash, OrderKey)>,
}

/// Proofs that are kept for one recovery key.
pub const RECOVERY_PROOFS_MAX: usize = 8;

/// Recovery keys that one query looks up.
pub const RECOVERY_KEYS_MAX: usize = 50;

/// What an id says about a recovery key, until it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryProof {
    /// The keyed hash of the recovery key ([`crate::secrets::Secret::recovery_key`]).
    pub key_hash: [u8; 32],
    /// The keyed hash of the id that stored it.
    pub owner: MailboxHash,
    /// Whether that id had proved itself.
    pub is_proven: bool,
    /// The proof, sealed under a key from the plain recovery key and the secret.
    pub sealed_proof: Bytes,
    /// When it was handed in: now.
    pub stored_at: Timestamp,
    /// From this moment on it is never shown.
    pub expires_at: Timestamp,
}

impl RecoveryProof {
    /// What it counts against the relay's bound.
    pub fn charged_bytes(&self) -> u64 {
        charged_bytes(self.sealed_proof.len())
    }
}

/// What became of a recovery proof that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryPut {
    /// It is durable, and an older one of the same owner is gone.
    Stored,
    /// Eight others are kept for this key, all of owners who proved themselves.
    Full,
    /// The relay holds as many bytes as it may, or the disk is nearly full.
    RelayFull,
}

/// What became of a nonce that was to be burnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burnt {
    /// This was its first use.
    First,
    /// It was used before: somebody recorded it.
    Used,
    /// Too many are remembered; try again within two minutes.
    Full,
}

/// What is known about some recovery keys, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryPage {
    /// As they were handed in.
    pub proofs: Vec<RecoveryProof>,
    /// Whether older ones were left out because they did not fit.
    pub more: bool,
}

impl RecoveryPage {
    /// Of these proofs, which come newest first, as many as fit.
    pub fn of(found: impl Iterator<Item = RecoveryProof>, bytes_max: u64) -> Self {
        let mut page = Self::default();
        let mut bytes: u64 = 0;
        for proof in found {
            bytes = bytes.saturating_add(proof.sealed_proof.len() as u64);
            if bytes > bytes_max {
                page.more = true;
                break;
            }
            page.proofs.push(proof);
        }
        page
    }
}

/// What a receipt tells. The numbers are stored; they are never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ReceiptKind {
    /// It was handed to a subscriber that lets senders know.
    Delivered = 1,
    /// A subscriber that lets senders know has acknowledged it.
    Acknowledged = 2,
    /// It expired.
    Expired = 3,
    /// It was purged, replaced or cancelled.
    Removed = 4,
    /// It did not match its checksum and was set aside.
    Lost = 5,
}

impl ReceiptKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Delivered,
        Self::Acknowledged,
        Self::Expired,
        Self::Removed,
        Self::Lost,
    ];
}

/// [`Receipt::at`] is rounded down to this.
const RECEIPT_PRECISION_MILLIS: u64 = 60_000;

/// Blob id, kind, time.
const RECEIPT_BYTES: usize = 16 + 1 + 8;

/// The content of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The blob that it is about.
    pub id: BlobId,
    /// What became of it.
    pub kind: ReceiptKind,
    /// When, rounded down to the minute.
    pub at: Timestamp,
}

impl Receipt {
    /// The receipt for something that happened `at` this moment.
    pub fn new(id: BlobId, kind: ReceiptKind, at: Timestamp) -> Self {
        let millis = at.millis();
        Self {
            id,
            kind,
            at: Timestamp::from_millis(millis - millis % RECEIPT_PRECISION_MILLIS),
        }
    }

    /// As it is stored: the blob's id, the kind, the Unix milliseconds.
    pub fn to_body(self) -> Bytes {
        let mut body = Vec::with_capacity(RECEIPT_BYTES);
        body.extend_from_slice(self.id.as_bytes());
        body.push(self.kind as u8);
        body.extend_from_slice(&self.at.millis().to_be_bytes());
        body.into()
    }

    /// Reads what [`Receipt::to_body`] wrote; `None` for anything else.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (id, rest) = body.split_first_chunk::<16>()?;
        let (number, millis) = rest.split_first()?;
        let millis = u64::from_be_bytes(millis.try_into().ok()?);
        let kind = ReceiptKind::ALL
            .into_iter()
            .find(|kind| *kind as u8 == *number)?;
        Some(Self {
            id: BlobId::from_bytes(*id),
            kind,
            at: Timestamp::from_millis(millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_comes_back_as_it_was_written_with_its_time_rounded_down() {
        for kind in ReceiptKind::ALL {
            let id = BlobId::from_bytes([7; 16]);
            let receipt = Receipt::new(id, kind, Timestamp::from_millis(1_800_000_059_999));
            assert_eq!(receipt.at.millis(), 1_800_000_000_000);
            assert_eq!(Receipt::parse(&receipt.to_body()), Some(receipt));
        }
    }

    #[test]
    fn what_is_no_receipt_is_not_read_as_one() {
        let id = BlobId::from_bytes([7; 16]);
        let body = Receipt::new(id, ReceiptKind::Lost, Timestamp::from_millis(0)).to_body();
        for end in 0..body.len() {
            assert_eq!(Receipt::parse(&body[..end]), None);
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(Receipt::parse(&longer), None);
        let mut unknown = body.to_vec();
        unknown[16] = 6;
        assert_eq!(Receipt::parse(&unknown), None);
    }
}
