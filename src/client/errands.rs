//! What a client asks beside its blobs: second thoughts, purges, pins, recovery.

use std::time::Duration;

use bytes::Bytes;

use super::request::Ask;
use super::{
    ANSWER_TO_SOMETHING_ELSE, BlobSecret, Client, ClientError, FoundProof, MailboxId, PurgedMailbox,
};
use crate::clock::Timestamp;
use crate::protocol::message::{RECOVERY_HASHES_MAX, RecoveryProof, RecoveryQuery};
use crate::protocol::proof;
use crate::protocol::v2::message::{Withdrawal, WithdrawalKind};
use crate::protocol::v2::{Answer, Request};

/// What a relay keeps under hashes of lost keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryProofs {
    /// Up to eight for each hash, the newest first. The relay does not judge them: check each.
    pub proofs: Vec<FoundProof>,
    /// Not all fitted into one answer; ask for fewer hashes.
    pub is_cut: bool,
}

impl Client {
    /// Takes a blob back, if it is still there; a receipt tells whether it was.
    pub async fn cancel(&self, mailbox: MailboxId, secret: &BlobSecret) -> Result<(), ClientError> {
        self.withdraw(mailbox, secret, WithdrawalKind::Cancel).await
    }

    /// Has a blob kept for so long from now, if it is still there and that is longer.
    pub async fn extend(
        &self,
        mailbox: MailboxId,
        secret: &BlobSecret,
        ttl: Duration,
    ) -> Result<(), ClientError> {
        self.withdraw(mailbox, secret, WithdrawalKind::Extend(ttl))
            .await
    }

    async fn withdraw(
        &self,
        mailbox: MailboxId,
        secret: &BlobSecret,
        kind: WithdrawalKind,
    ) -> Result<(), ClientError> {
        let secret = secret.expose();
        let request = Request::Withdraw(Withdrawal {
            mailbox,
            shown: match kind {
                WithdrawalKind::Extend(_) => proof::v2_extend_key(secret),
                WithdrawalKind::Cancel => *secret,
            },
            kind,
        });
        self.request(Ask::Request(request)).await.map(drop)
    }

    /// Deletes everything in these mailboxes, which must be open, and takes their pins off; how much it
    /// was. They stay open. When a connection breaks meanwhile, what had been deleted by then is not
    /// counted.
    pub async fn purge(&self, mailboxes: &[MailboxId]) -> Result<Vec<PurgedMailbox>, ClientError> {
        let request = Request::Purge(mailboxes.to_vec());
        match self.request(Ask::Request(request)).await? {
            Answer::Purged(mailboxes) => Ok(mailboxes),
            _ => Err(ANSWER_TO_SOMETHING_ELSE),
        }
    }

    /// Lets clients of protocol v1, which prove nothing, open this mailbox again, until it is opened by
    /// its key the next time. It must be open. A reconnect is such a time, too.
    pub async fn unpin(&self, mailbox: MailboxId) -> Result<(), ClientError> {
        let request = Request::Unpin(mailbox);
        self.request(Ask::Request(request)).await.map(drop)
    }

    /// Keeps a proof under the hash of a lost key, so that contacts can recognise its owner; until when.
    ///
    /// A mailbox must be open. The one that was opened first is who the proof is from: its next proof
    /// under this hash replaces this one, and no other does.
    pub async fn put_recovery(
        &self,
        key_hash: [u8; 32],
        proof: impl Into<Bytes>,
    ) -> Result<Timestamp, ClientError> {
        let proof = proof.into();
        let request = Request::RecoveryStore(RecoveryProof { key_hash, proof });
        match self.request(Ask::Request(request)).await? {
            Answer::RecoveryKept { expires_at } => Ok(expires_at),
            _ => Err(ANSWER_TO_SOMETHING_ELSE),
        }
    }

    /// What anybody has put under these hashes, 50 at the most.
    pub async fn get_recovery(
        &self,
        key_hashes: &[[u8; 32]],
    ) -> Result<RecoveryProofs, ClientError> {
        let (bytes, bytes_max) = (32 * key_hashes.len(), 32 * RECOVERY_HASHES_MAX);
        if bytes > bytes_max {
            return Err(ClientError::TooLarge { bytes, bytes_max });
        }
        let request = Request::RecoveryQuery(RecoveryQuery {
            key_hashes: key_hashes.to_vec(),
        });
        match self.request(Ask::Request(request)).await? {
            Answer::RecoveryFound { proofs, more } => Ok(RecoveryProofs {
                proofs,
                is_cut: more,
            }),
            _ => Err(ANSWER_TO_SOMETHING_ELSE),
        }
    }
}
