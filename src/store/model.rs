//! What a store takes, keeps and gives back.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::{BlobId, MailboxHash};

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
}

impl Class {
    /// Every class, for tables that are indexed by it.
    pub const ALL: [Self; 2] = [Self::SeenByV1, Self::ProvenOnly];

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
    /// A subscriber who proved possession: everything.
    Proven,
}

impl View {
    /// Whether blobs of this class are shown.
    pub fn shows(self, class: Class) -> bool {
        match self {
            Self::V1 => class == Class::SeenByV1,
            Self::Proven => true,
        }
    }
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
    /// The mailbox holds as many blobs or bytes as it may.
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
    /// When it was handed in.
    pub stored_at: Timestamp,
    /// From this moment on it is never delivered.
    pub expires_at: Timestamp,
    /// What was sealed beside it; empty when there was nothing.
    pub sealed: Bytes,
    /// The blob.
    pub body: Bytes,
}

/// How much a page may hold. At least one blob is returned, however large, when there is one.
#[derive(Debug, Clone, Copy)]
pub struct PageBounds {
    /// Blobs at the most.
    pub blobs_max: u32,
    /// Bytes of bodies and sealed fields at the most.
    pub bytes_max: u64,
}

/// The next blobs of a mailbox.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In order.
    pub blobs: Vec<StoredBlob>,
    /// Where the next page begins: pass it as `after`. It also passes over blobs that the view may
    /// not see and expired ones. Equal to `after` when there was nothing.
    pub next: OrderKey,
    /// Whether there was more when this page was read.
    pub more: bool,
}

/// How many blobs a write took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Blobs.
    pub blobs: u64,
}

/// What one step of the sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Expired blobs deleted.
    pub blobs: u64,
    /// Whether another step would find more.
    pub more: bool,
}

/// What is kept, and how it came to that. Over the life of a process
/// `stored_at_start + created = acknowledged + purged + expired + lost + stored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blobs kept when the store was opened.
    pub stored_at_start: u64,
    /// Blobs stored since, repeats not counted.
    pub created: u64,
    /// Blobs deleted by acknowledgement since.
    pub acknowledged: u64,
    /// Blobs deleted by purge since.
    pub purged: u64,
    /// Blobs deleted because they had expired, since.
    pub expired: u64,
    /// Blobs set aside as corrupt since.
    pub lost: u64,
    /// Blobs kept now.
    pub stored: u64,
    /// Bytes charged for them: bodies and sealed fields plus [`ROW_OVERHEAD_BYTES`] each.
    pub bytes: u64,
}

impl Usage {
    /// Whether the sum above holds.
    pub fn is_conserved(&self) -> bool {
        self.stored_at_start + self.created
            == self.acknowledged + self.purged + self.expired + self.lost + self.stored
    }
}
