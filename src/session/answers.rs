//! How a session answers: into the answer lane, timed and counted.

use std::future::pending;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::mailboxes::ToBegin;
use super::outbox::{Later, Owed};
use super::{Parts, Shared};
use crate::protocol::close::Close;
use crate::protocol::message::{Outgoing, Refused, Tag};
use crate::service::refusal::Refusal;
use crate::service::submit::Submitted;

/// The answering side of a session.
#[derive(Clone, Copy)]
pub(super) struct Answers<'a> {
    pub(super) parts: &'a Parts,
    pub(super) shared: &'a Shared,
    /// When the request had been read.
    pub(super) read_at: Instant,
}

impl Answers<'_> {
    /// An answer that is complete.
    pub(super) fn answer(self, answer: Outgoing) {
        let duration = &self.parts.metrics.message_duration_seconds;
        duration.record(self.read_at.elapsed());
        self.shared.outbox.push(Owed::Answer(answer));
    }

    /// A refusal.
    pub(super) fn refuse(self, tag: Option<Tag>, refusal: Refusal) {
        self.parts.service.count_refusal(&refusal);
        if matches!(tag, Some(Tag::Number(0))) {
            // No answer is wanted, not even this one.
            return;
        }
        let refused = worded(&refusal);
        self.answer(Outgoing::Refused { tag, refused });
    }

    /// Puts the close frame behind what is still owed. The writer then ends the session, which drops
    /// this; until then nothing more is read.
    pub(super) async fn close(self, close: Close) {
        self.shared.state().closing();
        self.shared.outbox.push(Owed::Close(close));
        pending::<()>().await;
    }

    /// The answer to a request that is done already, or refused.
    pub(super) fn done(self, tag: Tag, outcome: Result<Outgoing, Refusal>) {
        match outcome {
            Ok(answer) => self.answer(answer),
            Err(refusal) => self.refuse(Some(tag), refusal),
        }
    }

    /// The answer that mailboxes are open; when it has left their deliveries begin.
    pub(super) fn opened(self, answer: Outgoing, to_begin: Vec<ToBegin>) {
        let duration = &self.parts.metrics.message_duration_seconds;
        duration.record(self.read_at.elapsed());
        self.shared.outbox.push(Owed::Opened { answer, to_begin });
    }

    /// The answer to a blob that is being stored, or was refused before.
    pub(super) fn stored(self, tag: Tag, outcome: Result<Submitted, Refusal>) {
        match outcome {
            Ok(submitted) => self.shared.outbox.push(Owed::Commit {
                tag,
                submitted,
                read_at: self.read_at,
            }),
            Err(refusal) => self.refuse(Some(tag), refusal),
        }
    }

    /// The answer to something that is being written: `answer` when it is durable.
    pub(super) fn written(
        self,
        tag: Tag,
        answer: Outgoing,
        durable: impl Future<Output = Result<(), Refusal>> + Send + 'static,
    ) {
        let service = Arc::clone(&self.parts.service);
        let later = durable.map(move |outcome| match outcome {
            Ok(()) => answer,
            Err(refusal) => {
                service.count_refusal(&refusal);
                Outgoing::Refused {
                    tag: Some(tag),
                    refused: worded(&refusal),
                }
            }
        });
        self.shared.outbox.push(Owed::Later {
            answer: Later(later.boxed()),
            read_at: self.read_at,
        });
    }
}

/// A refusal in the words of the wire.
pub(super) fn worded(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        message: refusal.message(),
        retry_after: refusal.retry_after(),
    }
}
