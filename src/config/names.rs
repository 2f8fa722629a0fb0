//! Which `RELAY_*` variables are ours, and what to say of those that are not.

use std::collections::BTreeSet;

use super::settings::{SETTINGS, setting};

/// What a variable whose name begins with `RELAY_` is.
pub(super) enum Name {
    /// In the table.
    Setting,
    /// The Vauchi relay knows it; this one has no use for it.
    VauchiOnly,
    /// Demands encryption that this relay does not have; ignoring it could expose somebody.
    RequireNoise,
    /// Put there by Kubernetes for a service called `relay` or `relay-…`.
    Kubernetes,
    /// A slip of the pen, most likely.
    Unknown,
}

/// Tells what the variable `name` is; `value` is needed for `RELAY_PORT`.
pub(super) fn classify(name: &str, value: &str) -> Name {
    if setting(name).is_some() {
        Name::Setting
    } else if name == "RELAY_REQUIRE_NOISE_ENCRYPTION" {
        Name::RequireNoise
    } else if is_vauchi_only(name) {
        Name::VauchiOnly
    } else if is_kubernetes(name, value) {
        Name::Kubernetes
    } else {
        Name::Unknown
    }
}

/// The known spelling that looks most like `name`, if any looks alike.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    // Under this share of equal letters or words a suggestion confuses more than it helps.
    const LIKENESS_MIN: f64 = 0.6;
    let bare = |name: &str| name.trim_start_matches("RELAY_").to_ascii_uppercase();
    let wanted = bare(name);
    SETTINGS
        .iter()
        .flat_map(|setting| setting.spellings().map(|spelling| (spelling, setting.name)))
        .map(|(spelling, name)| {
            let spelling = bare(spelling);
            let letters = strsim::normalized_damerau_levenshtein(&spelling, &wanted);
            (letters.max(shared_words(&spelling, &wanted)), name)
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// The share of the words that two names have in common, from 0 to 1: MAX_BLOB_SIZE is MAX_MESSAGE_SIZE
/// with another word. One common word says nothing, as half of all names have a MAX.
fn shared_words(a: &str, b: &str) -> f64 {
    let words_a: BTreeSet<_> = a.split('_').collect();
    let words_b: BTreeSet<_> = b.split('_').collect();
    match words_a.intersection(&words_b).count() {
        0 | 1 => 0.0,
        shared => (2 * shared) as f64 / (words_a.len() + words_b.len()) as f64,
    }
}

fn is_vauchi_only(name: &str) -> bool {
    name == "RELAY_TLS_VERIFIED"
        || name.starts_with("RELAY_NOISE_")
        || name.starts_with("RELAY_FEDERATION_")
}

/// The shapes that Kubernetes injects for a service: `…_SERVICE_HOST`, `…_SERVICE_PORT`,
/// `…_SERVICE_PORT_HTTP`, `…_PORT` with a URL, `…_PORT_8080_TCP`, `…_PORT_8080_TCP_ADDR`.
fn is_kubernetes(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name
            .match_indices("_PORT_")
            .any(|(at, found)| is_port_and_protocol(&name[at + found.len()..]))
}

/// `8080_TCP`, `8080_TCP_PROTO`, `8080_TCP_PORT` or `8080_TCP_ADDR`.
fn is_port_and_protocol(rest: &str) -> bool {
    let Some((port, rest)) = rest.split_once('_') else {
        return false;
    };
    let (protocol, part) = rest.split_once('_').unwrap_or((rest, "ADDR"));
    port.parse::<u16>().is_ok()
        && matches!(protocol, "TCP" | "UDP" | "SCTP")
        && matches!(part, "PROTO" | "PORT" | "ADDR")
}
