//! How a v2 request is charged and answered: under the number that the client gave it.

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::guest::Guest;
use crate::ids::MailboxHash;
use crate::protocol::v2::{self, Answer, Tag};
use crate::service::refusal::Refusal;
use crate::service::submit::Submitted;
use crate::session::answers::{Answers, Asker, counted};
use crate::session::mailboxes::ToBegin;
use crate::session::state::Charge;

/// The client, and which of its frames is answered.
#[derive(Clone, Copy)]
pub(super) struct Reply<'a> {
    pub(super) guest: &'a Guest,
    pub(super) to: To,
    pub(super) answers: Answers<'a>,
}

/// Whom an answer goes to.
#[derive(Clone, Copy)]
pub(super) enum To {
    /// The request of this number.
    Request(Tag),
    /// Nobody: no answer is wanted, not even a refusal.
    Nobody,
    /// The sender of a frame whose number could not be read.
    Unread,
}

impl From<Option<Tag>> for To {
    fn from(tag: Option<Tag>) -> Self {
        tag.map_or(Self::Nobody, Self::Request)
    }
}

impl To {
    fn frame(self, answer: &Answer) -> Option<Bytes> {
        match self {
            Self::Request(tag) => Some(v2::encode(Some(tag), answer)),
            Self::Nobody => None,
            Self::Unread => Some(v2::encode(None, answer)),
        }
    }
}

impl Reply<'_> {
    pub(super) fn answer(self, answer: &Answer) {
        if let Some(frame) = self.to.frame(answer) {
            self.answers.answer(frame);
        }
    }

    /// The answer to a request that is done already, or refused.
    pub(super) fn done(self, outcome: Result<Answer, Refusal>) {
        match outcome {
            Ok(answer) => self.answer(&answer),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The answer that mailboxes are open; when it has left their deliveries begin.
    pub(super) fn opened(self, answer: &Answer, to_begin: Vec<ToBegin>) {
        if let Some(frame) = self.to.frame(answer) {
            self.answers.opened(frame, to_begin);
        }
    }

    /// The answer that mailboxes are closed.
    pub(super) fn closed(self, answer: &Answer, closed: Vec<MailboxHash>) {
        match self.to.frame(answer) {
            Some(frame) => self.answers.closed(frame, closed),
            None => self.answers.shared.forget(&closed),
        }
    }

    /// The answer to a blob that is being stored, or was refused before.
    pub(super) fn stored(self, outcome: Result<Submitted, Refusal>) {
        match outcome {
            Ok(submitted) => {
                let clock = self.answers.parts.clock.clone();
                self.written(submitted.map(move |outcome| {
                    outcome.map(|stored| Answer::Stored {
                        expires_at: clock.told(stored.expires_at),
                        duplicate: stored.duplicate,
                    })
                }));
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The answer to something that is being written; it resolves when that is durable. The writing goes
    /// on whether or not anybody waits for it.
    pub(super) fn written(
        self,
        answer: impl Future<Output = Result<Answer, Refusal>> + Send + 'static,
    ) {
        let To::Request(tag) = self.to else {
            return;
        };
        let parts = self.answers.parts.clone();
        let answer = answer.map(move |answer| {
            let answer =
                answer.unwrap_or_else(|refusal| Answer::Refused(counted(&refusal, &parts)));
            v2::encode(Some(tag), &answer)
        });
        self.answers.later(answer, 0);
    }
}

impl Asker for Reply<'_> {
    async fn charge(&self, charge: Charge) -> Result<(), Refusal> {
        let service = &self.answers.parts.service;
        match charge {
            Charge::Nothing | Charge::Later => Ok(()),
            Charge::Request => service.charge(&self.guest.client()).await,
            Charge::Requests(count) => service.charge_requests(&self.guest.client(), count).await,
            Charge::Recovery => service.charge_recovery(&self.guest.client()).await,
        }
    }

    fn refuse(&self, refusal: Refusal) {
        let refused = counted(&refusal, self.answers.parts);
        self.answer(&Answer::Refused(refused));
    }
}
