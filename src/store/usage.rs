//! What a store keeps in all, and the sums by which nothing gets lost unnoticed.

/// What is kept of one kind, and how it came to that. Over the life of a process
/// `stored_at_start + created = acknowledged + cancelled + replaced + purged + expired + lost +
/// stored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Kept when the store was opened.
    pub stored_at_start: u64,
    /// Stored since, repeats not counted.
    pub created: u64,
    /// Deleted by acknowledgement since.
    pub acknowledged: u64,
    /// Withdrawn by their sender since; only blobs are.
    pub cancelled: u64,
    /// Replaced by a later one of the same topic since; only blobs are.
    pub replaced: u64,
    /// Deleted by purge since.
    pub purged: u64,
    /// Deleted because they had expired, since.
    pub expired: u64,
    /// Set aside as corrupt since.
    pub lost: u64,
    /// Kept now.
    pub stored: u64,
}

impl Kept {
    /// Whether the sum above holds.
    pub fn is_conserved(&self) -> bool {
        self.stored_at_start + self.created
            == self.acknowledged
                + self.cancelled
                + self.replaced
                + self.purged
                + self.expired
                + self.lost
                + self.stored
    }
}

/// What is kept, and how it came to that. The blobs' own sum stands here as in [`Kept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blobs kept when the store was opened.
    pub stored_at_start: u64,
    /// Blobs stored since, repeats not counted.
    pub created: u64,
    /// Blobs deleted by acknowledgement since.
    pub acknowledged: u64,
    /// Blobs withdrawn by their sender since.
    pub cancelled: u64,
    /// Blobs replaced by a later one of the same topic since.
    pub replaced: u64,
    /// Blobs deleted by purge since.
    pub purged: u64,
    /// Blobs deleted because they had expired, since.
    pub expired: u64,
    /// Blobs set aside as corrupt since.
    pub lost: u64,
    /// Blobs kept now.
    pub stored: u64,
    /// Device sync messages, a sum of their own.
    pub device_sync: Kept,
    /// Receipts, a sum of their own.
    pub receipts: Kept,
    /// Receipts that found their mailbox or the relay full and were never written.
    pub receipts_dropped: u64,
    /// Recovery proofs kept now.
    pub recovery_proofs: u64,
    /// Pins kept now.
    pub pins: u64,
    /// Bytes charged for everything: bodies, sealed fields and recovery proofs, plus
    /// [`super::model::ROW_OVERHEAD_BYTES`] each. Pins are free; their number is bounded.
    pub bytes: u64,
}

impl Usage {
    /// Of the blobs alone.
    pub fn blobs(&self) -> Kept {
        Kept {
            stored_at_start: self.stored_at_start,
            created: self.created,
            acknowledged: self.acknowledged,
            cancelled: self.cancelled,
            replaced: self.replaced,
            purged: self.purged,
            expired: self.expired,
            lost: self.lost,
            stored: self.stored,
        }
    }

    /// Whether all three sums hold.
    pub fn is_conserved(&self) -> bool {
        self.blobs().is_conserved()
            && self.device_sync.is_conserved()
            && self.receipts.is_conserved()
    }
}
