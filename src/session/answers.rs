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
use crate::ids::MailboxHash;
use crate::protocol::close::Close;
use crate::protocol::message::Refused;
use crate::service::refusal::Refusal;

/// The sender of a frame: each protocol knows whom to charge, and words its refusals.
pub(super) trait Asker {
    /// Charges what a request costs.
    fn charge(&self, charge: Charge) -> impl Future<Output = Result<(), Refusal>> + Send;

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
            Verdict::Serve(charge) => match asker.charge(charge).await {
                Ok(()) => {
                    self.paid(charge);
                    return true;
                }
                Err(refusal) => asker.refuse(refusal),
            },
            Verdict::Refuse(refusal) => {
                // It is refused already; the charge only makes the next ones dearer.
                let spent = asker.charge(Charge::Request).await.err();
                if spent.is_none() {
                    self.paid(Charge::Request);
                }
                asker.refuse(spent.unwrap_or(refusal));
            }
            Verdict::Ignore => {
                self.parts.metrics.messages_ignored_total.increment(1);
                // v1 clients expect no answer here, so a spent rate shows at their next request.
                if asker.charge(Charge::Request).await.is_ok() {
                    self.paid(Charge::Request);
                }
            }
            Verdict::Close(refusal, close) => {
                asker.refuse(refusal);
                self.close(close).await;
            }
        }
        false
    }

    /// A frame that is charged for costs no reading besides.
    fn paid(self, charge: Charge) {
        match charge {
            Charge::Nothing | Charge::Later => {}
            Charge::Request | Charge::Requests(_) | Charge::Recovery => self.shared.earn_all(),
        }
    }

    /// An answer that is complete.
    pub(super) fn answer(self, answer: Bytes) {
        record(self.parts, self.read_at);
        self.shared.outbox.push(Owed::Answer(answer));
    }

    /// The answer that mailboxes are open; when it has left their deliveries begin.
    pub(super) fn opened(self, answer: Bytes, to_begin: Vec<ToBegin>) {
        record(self.parts, self.read_at);
        self.shared.outbox.push(Owed::Opened { answer, to_begin });
    }

    /// The answer that mailboxes are closed; when it has left the window forgets what is in flight of
    /// them.
    pub(super) fn closed(self, answer: Bytes, closed: Vec<MailboxHash>) {
        record(self.parts, self.read_at);
        self.shared.outbox.push(Owed::Closed { answer, closed });
    }

    /// The answer to something that is being written; it resolves when that is durable, and repeats
    /// `name_bytes` of the client's own.
    pub(super) fn later(
        self,
        answer: impl Future<Output = Bytes> + Send + 'static,
        name_bytes: usize,
    ) {
        let (parts, read_at) = (Arc::clone(self.parts), self.read_at);
        let answer = answer.map(move |answer| {
            record(&parts, read_at);
            answer
        });
        self.shared.outbox.push_later(answer.boxed(), name_bytes);
    }

    /// Puts the close frame behind what is still owed. The writer then ends the session, which drops
    /// this; until then nothing more is read.
    pub(super) async fn close(self, close: Close) {
        self.shared.state().closing();
        self.shared.outbox.push(Owed::Close(close));
        pending::<()>().await;
    }
}

/// How long an answer took from when its request had been read.
fn record(parts: &Parts, read_at: Instant) {
    let (metrics, took) = (&parts.metrics, read_at.elapsed());
    metrics.message_duration_seconds.record(took);
}

/// Counts a refusal that is about to be told, and puts it in the words of the wire.
pub(super) fn counted(refusal: &Refusal, parts: &Parts) -> Refused {
    parts.service.count_refusal(refusal);
    Refused {
        code: refusal.code(),
        message: refusal.message(),
        retry_after: refusal.retry_after(),
    }
}
