//! Which relays, and the bounds of a client.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::known_relays::{KnownRelays, RelaysInMemory};

/// How to connect. Made by [`Options::new`]; change what you like.
#[derive(Debug, Clone)]
pub struct Options {
    /// The relays to use, the first that answers. `ws://host:port` or `wss://host`, and behind it the
    /// relay's id, where that is known: `wss://host#id`, 64 hexadecimal digits. Then no other relay is
    /// accepted there.
    pub relays: Vec<String>,
    /// Remembers which relay was met under which host, for those whose URL names no id. By default only
    /// as long as the client lives; [`super::KnownRelaysFile`] keeps them in a file.
    pub known_relays: Arc<dyn KnownRelays>,
    /// The certificates (PEM) that `wss://` is checked against; the system's when there is none.
    pub authorities: Option<PathBuf>,
    /// Whether blobs are padded ([`super::pad`]). Those that v1 clients may see never are, because v1
    /// clients do not know of it.
    ///
    /// Whoever receives takes padding off in any case, since nothing else tells of it. A blob that is
    /// sent without and ends as padding does arrives cut: zeros, the number of all these bytes (4 bytes,
    /// big-endian), `VPAD`. What is encrypted ends so by chance about once in 2^64 blobs.
    pub pads: bool,
    /// How many submits may be without an answer; one more waits.
    pub submits_max: usize,
    /// How many bytes of blobs may be without an answer; one more waits.
    pub submit_bytes_max: usize,
    /// How many other requests and acknowledgements may be without an answer; one more waits.
    pub requests_max: usize,
    /// How many blobs may be delivered and not acknowledged. Relays grant at most 1,024 by default.
    pub window_blobs: u32,
    /// How many bytes of them.
    pub window_bytes: u64,
    /// The largest blob, either way. A relay that takes larger ones is not used, because one might come:
    /// relays take up to 1 MiB by default, and 64 MiB at the most.
    pub message_bytes_max: usize,
    /// How long connecting may take, until the relay's welcome.
    pub connect_timeout: Duration,
    /// The wait before the first reconnect is drawn from zero to this; it doubles with each failure.
    pub backoff_base: Duration,
    /// What the doubling ends at.
    pub backoff_max: Duration,
    /// A request that is refused for now ([`super::ClientError::retry_after`]) is asked again after the
    /// wait that the relay names, for so long from the first refusal; a refusal that names a longer
    /// wait is given to the caller. Zero gives every refusal to the caller. A full mailbox names a
    /// minute, storage that is away five seconds, a limit on speed what is left of it.
    pub repeat_for: Duration,
    /// How long a request may go without an answer, over all connections; then it is not asked again.
    /// Its caller gets the relay's last refusal, if the request waited to be asked again after it, or else
    /// [`super::ClientError::Timeout`]: whether it was done is not known then, and the same blob may be
    /// submitted again. `None` waits as long as it takes.
    pub answer_within: Option<Duration>,
    /// When nothing was heard from the relay for so long, it is asked whether it is there; after the same
    /// time again without a sign the connection counts as lost. The relay pings by itself, every 30
    /// seconds by default, so that less than that makes for more traffic; and what takes longer to arrive
    /// than twice this counts as silence, so leave a slow line the time for a blob. Never more than five
    /// quarters of the interval that the relay names, 37.5 seconds by default: a larger value changes
    /// nothing.
    pub ping_after: Duration,
    /// After so long without any connection that serves the client ends, and with it what is
    /// unanswered. `None` tries for ever.
    pub give_up_after: Option<Duration>,
}

impl Options {
    /// These relays and the default bounds.
    pub fn new<Url: Into<String>>(relays: impl IntoIterator<Item = Url>) -> Self {
        Self {
            relays: relays.into_iter().map(Into::into).collect(),
            known_relays: Arc::new(RelaysInMemory::default()),
            authorities: None,
            pads: true,
            submits_max: 256,
            submit_bytes_max: 16 << 20,
            requests_max: 1_024,
            // The relay's defaults.
            window_blobs: 64,
            window_bytes: 4 << 20,
            // Four times the relay's default for one blob.
            message_bytes_max: 4 << 20,
            connect_timeout: Duration::from_secs(10),
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(30),
            repeat_for: Duration::from_secs(60),
            answer_within: None,
            // With the second half: two and a half of the relay's pings, as it does with us.
            ping_after: Duration::from_millis(37_500),
            give_up_after: None,
        }
    }
}
