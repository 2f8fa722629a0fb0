//! The next page of a mailbox.

use super::Service;
use crate::ids::MailboxHash;
use crate::store::StoreError;
use crate::store::model::{OrderKey, Page, PageBounds, View};

/// One page is all that a session holds of its mailbox: 256 KiB, or one blob if that is larger.
/// 1,000 sessions that all read a full mailbox hold 256 MiB at the most.
pub const PAGE: PageBounds = PageBounds {
    blobs_max: 256,
    bytes_max: 256 * 1024,
};

impl Service {
    /// What comes after `after` in a mailbox that the caller has opened.
    pub async fn page(
        &self,
        mailbox: MailboxHash,
        view: View,
        after: OrderKey,
    ) -> Result<Page, StoreError> {
        self.parts
            .store
            .page(mailbox, view, after, PAGE, self.parts.clock.now())
            .await
    }
}
