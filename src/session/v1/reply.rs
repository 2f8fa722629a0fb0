//! How a v1 request is charged and answered: under the name that the client gave it.

use futures_util::FutureExt as _;

use super::open::Opened;
use crate::protocol::v1::{self, Answer, Tag};
use crate::service::refusal::Refusal;
use crate::service::submit::Submitted;
use crate::session::answers::{Answers, Asker, counted};
use crate::session::state::Charge;

/// The client, and the name of its request; `None` when that could not be read.
#[derive(Clone, Copy)]
pub(super) struct Reply<'a> {
    pub(super) opened: &'a Opened,
    pub(super) tag: Option<&'a Tag>,
    pub(super) answers: Answers<'a>,
}

impl Reply<'_> {
    pub(super) fn answer(self, answer: &Answer) {
        let now = self.answers.parts.clock.told_now();
        self.answers.answer(v1::encode(self.tag, answer, now));
    }

    /// The answer to a request that is done already, or refused.
    pub(super) fn done(self, outcome: Result<Answer, Refusal>) {
        match outcome {
            Ok(answer) => self.answer(&answer),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The answer to a blob that is being stored, or was refused before.
    pub(super) fn stored(self, outcome: Result<Submitted, Refusal>) {
        let submitted = match outcome {
            Ok(submitted) => submitted,
            Err(refusal) => return self.refuse(refusal),
        };
        let (parts, tag) = (self.answers.parts.clone(), self.tag.cloned());
        let answer = submitted.map(move |outcome| {
            let answer = match outcome {
                Ok(_) => Answer::Stored,
                Err(refusal) => Answer::Refused(counted(&refusal, &parts)),
            };
            v1::encode(tag.as_ref(), &answer, parts.clock.told_now())
        });
        let name_bytes = self.tag.map_or(0, |tag| tag.name().len());
        self.answers.later(answer, name_bytes);
    }
}

impl Asker for Reply<'_> {
    async fn charge(&self, charge: Charge) -> Result<(), Refusal> {
        let service = &self.answers.parts.service;
        let client = &self.opened.subscription.client;
        match charge {
            Charge::Nothing | Charge::Later => Ok(()),
            Charge::Request => service.charge(client).await,
            Charge::Requests(count) => service.charge_requests(client, count).await,
            Charge::Recovery => service.charge_recovery(client).await,
        }
    }

    fn refuse(&self, refusal: Refusal) {
        let refused = counted(&refusal, self.answers.parts);
        self.answer(&Answer::Refused(refused));
    }
}
