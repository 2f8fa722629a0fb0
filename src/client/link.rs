//! The task that owns the socket: connects, reads and writes at the same time, and connects again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::ClientError;
use super::dial::{Dialled, Dialler};
use super::request::Live;
use super::routes::Routes;
use super::send_order::Next;
use super::socket::{Socket, closed, next_message};
use super::state::{Heard, State};
use crate::protocol::v2::client::{ServerFrame, decode_server_frame};
use crate::protocol::v2::message::{GoAway, GoAwayReason};

/// How long a frame may take to be written, and how many bytes have a second more: as long as the relay
/// takes for reading and writing it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND: u64 = 64 << 10;

/// A connection that lasted so long was one, whether or not anything was asked on it.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Close codes after which the same would happen again: too large, try later, malformed, failed proofs.
const FAULT_CODES: [u16; 4] = [1009, 1013, 4400, 4429];

/// How long the relay has for answering our goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the task and the client share.
pub(super) struct Shared {
    /// Nothing awaits under this lock.
    state: Mutex<State>,
    /// Somebody has asked something, or the client shall close.
    pub(super) asked: Notify,
    /// Something has come, or the end.
    pub(super) arrived: Notify,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            asked: Notify::new(),
            arrived: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a connection ended.
enum Ended {
    Lost(ClientError),
    SentAway(GoAway),
    Finished,
}

/// Connects, over and over.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) dialler: Dialler,
    pub(super) routes: Routes,
    pub(super) relays: usize,
    pub(super) ping_after: Duration,
    pub(super) give_up_after: Option<Duration>,
    /// Who waits for the first connection. All relays are tried once for it.
    pub(super) first: Option<oneshot::Sender<Result<(), ClientError>>>,
}

impl Drop for Link {
    /// However the task ends, nobody waits for it: it may be cut off with its runtime.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.ended().is_none() {
            state.end(ClientError::Finished);
        }
        drop(state);
        self.shared.arrived.notify_waiters();
    }
}

impl Link {
    /// Runs until the client is closed, or gives up.
    pub(super) async fn run(mut self) {
        let why = self.stay_connected().await;
        self.shared.state().end(why.clone());
        if let Some(first) = self.first.take() {
            first.send(Err(why)).ok();
        }
    }

    async fn stay_connected(&mut self) -> ClientError {
        let mut alone_since = Instant::now();
        let mut tried = 0;
        loop {
            if self.shared.state().is_finished() {
                return ClientError::Finished;
            }
            let (at, when) = self.routes.next(Instant::now());
            let dialled = tokio::select! {
                dialled = async {
                    tokio::time::sleep_until(when).await;
                    self.dialler.dial(at).await
                } => dialled,
                () = finished(&self.shared) => return ClientError::Finished,
                why = self.given_up_before(when, alone_since) => return why,
            };
            let why = match dialled {
                Ok(dialled) => {
                    if let Some(first) = self.first.take() {
                        first.send(Ok(())).ok();
                    }
                    let began = Instant::now();
                    let (ended, has_served) = self.serve(dialled).await;
                    self.shared.state().disconnected();
                    let now = Instant::now();
                    let was_good = self.was_good(now - began, has_served, &ended);
                    if was_good {
                        alone_since = now;
                        self.routes.served(at);
                    }
                    match ended {
                        Ended::Finished => return ClientError::Finished,
                        Ended::SentAway(go_away) => {
                            let (after, alternates) =
                                (go_away.reconnect_after, &go_away.alternates);
                            self.routes.sent_away(at, now, after, alternates);
                            sent_away(&go_away)
                        }
                        Ended::Lost(why) => {
                            self.lost(at, now, was_good, &why);
                            why
                        }
                    }
                }
                Err(why) => {
                    tried += 1;
                    self.routes.failed(at, Instant::now(), why.retry_after());
                    why
                }
            };
            let is_enough = self.first.is_some() && tried >= self.relays;
            if is_enough || self.is_too_long(alone_since) {
                return why;
            }
            self.shared.state().trouble = Some(why);
        }
    }

    /// One that ends with a fault would end so again: coming back at once, however much the relay did before,
    /// would have the same blob sent over and over. One that lasted longer than any wait may come back.
    fn was_good(&self, lasted: Duration, has_served: bool, ended: &Ended) -> bool {
        let is_fault = matches!(ended, Ended::Lost(why) if is_fault(why));
        match is_fault {
            true => lasted >= self.routes.longest_wait().max(SETTLED_AFTER),
            false => has_served || lasted >= SETTLED_AFTER,
        }
    }

    /// A relay that lets us in and does nothing for us is as bad as one that does not answer.
    fn lost(&mut self, at: usize, now: Instant, was_good: bool, why: &ClientError) {
        match why.retry_after() {
            None if was_good => self.routes.lost(at, now),
            after => self.routes.failed(at, now, after),
        }
    }

    fn is_too_long(&self, alone_since: Instant) -> bool {
        self.give_up_after
            .is_some_and(|max| alone_since.elapsed() >= max)
    }

    /// Waiting for a relay takes no longer than the client shall go on.
    async fn given_up_before(&self, when: Instant, alone_since: Instant) -> ClientError {
        let end = self
            .give_up_after
            .and_then(|max| alone_since.checked_add(max));
        match end {
            Some(end) if end < when => tokio::time::sleep_until(end).await,
            _ => std::future::pending().await,
        }
        // Whoever has to wait has failed before.
        let why = self.shared.state().trouble.clone();
        why.unwrap_or(ClientError::Timeout)
    }

    /// One connection, from its welcome to its end; and whether the relay has done anything on it.
    async fn serve(&self, dialled: Dialled) -> (Ended, bool) {
        let Dialled {
            socket,
            welcome,
            origin,
        } = dialled;
        // Two and a half of the relay's pings until it counts as lost, as it does with us.
        let silence = welcome.keepalive.max(Duration::from_secs(1)) * 5 / 4;
        let silence = silence.min(self.ping_after);
        let shared = Arc::clone(&self.shared);
        let live = Live { welcome, origin };
        shared.state().connected(live, Instant::now());
        // At another relay mailboxes may have been closed, and nothing need ever be heard there.
        shared.arrived.notify_waiters();
        let (sink, stream) = socket.split();
        let (mut go_away, mut has_served) = (None, false);
        let reader = Reader {
            stream,
            shared: &shared,
            silence,
            go_away: &mut go_away,
            has_served: &mut has_served,
        };
        let ended = tokio::select! {
            why = reader.run() => Ended::Lost(why),
            ended = write(sink, &shared) => ended,
        };
        let ended = match go_away {
            Some(go_away) if !shared.state().is_finished() => Ended::SentAway(go_away),
            _ => ended,
        };
        (ended, has_served)
    }
}

/// Comes when the client is to end and owes nothing.
async fn finished(shared: &Shared) {
    while !shared.state().is_finished() {
        shared.asked.notified().await;
    }
}

/// How an absence that the relay asked for is told: as its goodbye would.
fn sent_away(go_away: &GoAway) -> ClientError {
    let reason = match go_away.reason {
        GoAwayReason::Draining => "the relay is shutting down",
        GoAwayReason::Overloaded => "the relay is overloaded",
    };
    ClientError::Closed {
        code: CloseCode::Away.into(),
        reason: reason.to_owned(),
    }
}

/// Whether one of the two does not understand the other, or has had too much of it.
fn is_fault(why: &ClientError) -> bool {
    match why {
        ClientError::Protocol(_) => true,
        ClientError::Closed { code, .. } => FAULT_CODES.contains(code),
        _ => false,
    }
}

struct Reader<'a> {
    stream: SplitStream<Socket>,
    shared: &'a Shared,
    /// After so long the relay is asked whether it is there; after the same again it is not.
    silence: Duration,
    go_away: &'a mut Option<GoAway>,
    /// Whether the relay has answered or delivered anything.
    has_served: &'a mut bool,
}

impl Reader<'_> {
    /// Reads until the connection ends; why it did.
    async fn run(mut self) -> ClientError {
        loop {
            let ask = || {
                self.shared.state().ping();
                self.shared.asked.notify_one();
            };
            let heard = next_message(&mut self.stream, self.silence, ask).await;
            match heard {
                Ok(Message::Binary(frame)) => match decode_server_frame(&frame) {
                    Ok(frame) => self.hear(frame),
                    Err(bad) => return ClientError::Protocol(bad.0),
                },
                Ok(Message::Close(frame)) => {
                    // Reading on sends our half of the goodbye; then it is the relay's turn to hang up.
                    let hang_up = async { while let Some(Ok(_)) = self.stream.next().await {} };
                    tokio::time::timeout(GOODBYE_TIMEOUT, hang_up).await.ok();
                    return closed(frame);
                }
                // Pings are answered by tungstenite with the next read.
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    }

    fn hear(&mut self, frame: ServerFrame) {
        let mut state = self.shared.state();
        let heard = state.hear(frame, Instant::now());
        if let Heard::GoAway(_) = heard {
            state.sent_away();
        }
        drop(state);
        match heard {
            Heard::Nothing => {}
            Heard::Answer | Heard::Event => *self.has_served = true,
            Heard::GoAway(go_away) => *self.go_away = Some(go_away),
        }
        // An answer may bring an event, too, and any frame may leave something to be written.
        self.shared.arrived.notify_waiters();
        self.shared.asked.notify_one();
    }
}

/// Writes what is asked, until it is time to leave or writing fails.
async fn write(mut sink: SplitSink<Socket, Message>, shared: &Shared) -> Ended {
    // What the frame before has left unwritten goes first.
    let mut before = 0;
    loop {
        let next = shared.state().next(Instant::now());
        let is_written = match next {
            Next::Write(frame) => {
                let bytes = frame.len() + std::mem::replace(&mut before, frame.len());
                in_time(bytes, sink.feed(Message::Binary(frame))).await
            }
            Next::Idle(until) => {
                let is_flushed = in_time(std::mem::take(&mut before), sink.flush()).await;
                if is_flushed {
                    idle(shared, until).await;
                }
                is_flushed
            }
            Next::Leave => {
                let goodbye = CloseFrame {
                    code: CloseCode::Normal,
                    reason: "".into(),
                };
                in_time(before, sink.send(Message::Close(Some(goodbye)))).await;
                // Until then the reader may find the relay's goodbye.
                tokio::time::sleep(GOODBYE_TIMEOUT).await;
                return Ended::Finished;
            }
        };
        if !is_written {
            let why = "cannot send any more".to_owned();
            return Ended::Lost(ClientError::Lost(why));
        }
    }
}

fn write_timeout(bytes: usize) -> Duration {
    WRITE_TIMEOUT + Duration::from_secs(bytes as u64 / BYTES_PER_SECOND)
}

/// Whether it was written, and in time for so many bytes.
async fn in_time(
    bytes: usize,
    writing: impl Future<Output = Result<(), tokio_tungstenite::tungstenite::Error>>,
) -> bool {
    matches!(
        tokio::time::timeout(write_timeout(bytes), writing).await,
        Ok(Ok(()))
    )
}

async fn idle(shared: &Shared, until: Option<Instant>) {
    match until {
        Some(until) => tokio::select! {
            () = shared.asked.notified() => {}
            () = tokio::time::sleep_until(until) => {}
        },
        None => shared.asked.notified().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_frame_has_as_long_as_the_relay_waits_for_it() {
        assert_eq!(write_timeout(1_000), WRITE_TIMEOUT);
        assert_eq!(
            write_timeout(64 << 20),
            WRITE_TIMEOUT + Duration::from_secs(1_024)
        );
    }
}
