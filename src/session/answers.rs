//! How a session answers: into the answer lane, timed and counted.

use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::mailboxes::ToBegin;
use super::outbox::Owed;
use super::state::{Charge, Said, Verdict};
use super::{Parts, Shared};
use crate::protocol::close::Close;
use crate::protocol::message::{Outgoing, Refused, Tag};
use crate::protocol::{Version, v1, v2};
use crate::service::refusal::Refusal;
use crate::service::submit::Submitted;

/// Whoever sent a frame: each protocol knows whom to charge, and words its refusals.
pub(super) trait Asker {
    /// Charges what a request costs.
    fn charge(&self, charge: Charge) -> Result<(), Refusal>;

    /// Answers with a refusal, where an answer is wanted.
    fn refuse(&self, refusal: Refusal);
}

/// The answering side of a session.
#[derive(Clone, Copy)]
pub(super) struct Answers<'a> {
    pub(super) parts: &'a Arc<Parts>,
    pub(super) shared: &'a Shared,
    /// When the request had been read.
    pub(super) read_at: Instant,
}

impl Answers<'_> {
    /// Whether what was said is to be served, and is paid for. Any other verdict is carried out here.
    pub(super) async fn admits(self, said: Said, asker: &impl Asker) -> bool {
        let verdict = self.shared.state().judge(said);
        match verdict {
            Verdict::Serve(charge) => match asker.charge(charge) {
                Ok(()) => return true,
                Err(refusal) => asker.refuse(refusal),
            },
            Verdict::Refuse(refusal) => {
                // It is refused already; the charge only makes the next ones dearer.
                let spent = asker.charge(Charge::Request).err();
                asker.refuse(spent.unwrap_or(refusal));
            }
            Verdict::Ignore => {
                self.parts.metrics.messages_ignored_total.increment(1);
                // v1 clients expect no answer here, so a spent rate shows at their next request.
                drop(asker.charge(Charge::Request));
            }
            Verdict::Close(refusal, close) => {
                asker.refuse(refusal);
                self.close(close).await;
            }
        }
        false
    }

    /// An answer that is complete.
    pub(super) fn answer(self, answer: &Outgoing) {
        self.record();
        self.shared.outbox.push(Owed::Answer(self.encode(answer)));
    }

    fn record(self) {
        let (metrics, took) = (&self.parts.metrics, self.read_at.elapsed());
        metrics.message_duration_seconds.record(took);
    }

    fn encode(self, answer: &Outgoing) -> Bytes {
        encode(self.shared.state().version(), answer, self.parts)
    }

    /// A refusal.
    pub(super) fn refuse(self, tag: Option<Tag>, refusal: Refusal) {
        self.parts.service.count_refusal(&refusal);
        if matches!(tag, Some(Tag::Number(0))) {
            // No answer is wanted, not even this one.
            return;
        }
        let refused = worded(&refusal);
        self.answer(&Outgoing::Refused { tag, refused });
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
            Ok(answer) => self.answer(&answer),
            Err(refusal) => self.refuse(Some(tag), refusal),
        }
    }

    /// The answer that mailboxes are open; when it has left their deliveries begin.
    pub(super) fn opened(self, answer: &Outgoing, to_begin: Vec<ToBegin>) {
        self.record();
        let answer = self.encode(answer);
        self.shared.outbox.push(Owed::Opened { answer, to_begin });
    }

    /// The answer to a blob that is being stored, or was refused before.
    pub(super) fn stored(self, tag: Tag, outcome: Result<Submitted, Refusal>) {
        match outcome {
            Ok(submitted) => {
                let name = tag.clone();
                let answer = submitted.map(|outcome| {
                    outcome.map(|stored| Outgoing::Stored {
                        tag: name,
                        expires_at: stored.expires_at,
                        duplicate: stored.duplicate,
                    })
                });
                self.written(tag, answer);
            }
            Err(refusal) => self.refuse(Some(tag), refusal),
        }
    }

    /// The answer to something that is being written; it resolves when that is durable.
    pub(super) fn written(
        self,
        tag: Tag,
        answer: impl Future<Output = Result<Outgoing, Refusal>> + Send + 'static,
    ) {
        let (parts, read_at) = (Arc::clone(self.parts), self.read_at);
        let version = self.shared.state().version();
        let name_bytes = tag.name().len();
        let later = answer.map(move |answer| {
            let duration = &parts.metrics.message_duration_seconds;
            duration.record(read_at.elapsed());
            let answer = answer.unwrap_or_else(|refusal| {
                parts.service.count_refusal(&refusal);
                Outgoing::Refused {
                    tag: Some(tag),
                    refused: worded(&refusal),
                }
            });
            encode(version, &answer, &parts)
        });
        self.shared.outbox.push_later(later.boxed(), name_bytes);
    }
}

fn encode(version: Version, answer: &Outgoing, parts: &Parts) -> Bytes {
    match version {
        Version::V1 => v1::encode(answer, parts.clock.now()),
        Version::V2 => v2::encode(answer),
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
