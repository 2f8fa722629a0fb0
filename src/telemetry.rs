//! Logs: their format, their level and where they go.
//!
//! Lines go to standard error. Only this crate's own records and those of crates that use `tracing`
//! are shown: records of the `log` crate are not bridged, because tungstenite writes whole frames
//! there. No mailbox id, blob, token or client address is ever logged.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::config::LogFormat;

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "vauchi_relay=info";

/// Logging was set up before in this process; that first set-up stays.
#[derive(Debug, thiserror::Error)]
#[error("logging is set up already")]
pub struct AlreadySetUp;

/// Sets up logging for the whole process, filtered by `RUST_LOG`.
///
/// A filter that cannot be read is warned about and the default is used: a relay that runs with
/// the usual logs is better than one that does not run.
pub fn init(format: LogFormat) -> Result<(), AlreadySetUp> {
    let (filter, warning) = filter(std::env::var_os("RUST_LOG").as_deref());
    let is_terminal = io::stderr().is_terminal();
    let subscriber = subscriber(format, filter, is_terminal, io::stderr);
    // Not `SubscriberInitExt::init`, which would bridge the `log` crate once some dependency
    // switches that feature on.
    tracing::subscriber::set_global_default(subscriber).map_err(|_| AlreadySetUp)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// The filter that `RUST_LOG` asks for, or the default and why it was not taken.
fn filter(rust_log: Option<&std::ffi::OsStr>) -> (EnvFilter, Option<String>) {
    let default = || EnvFilter::new(DEFAULT_FILTER);
    let Some(text) = rust_log.filter(|text| !text.is_empty()) else {
        return (default(), None);
    };
    let text = text.to_string_lossy();
    match EnvFilter::try_new(&text) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let warning = format!(
                "RUST_LOG: {text:?} cannot be read ({error}); using {DEFAULT_FILTER}, \
                 write for example vauchi_relay=debug"
            );
            (default(), Some(warning))
        }
    }
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    is_terminal: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer);
    let registry = Registry::default().with(filter);
    match format {
        LogFormat::Text => Box::new(registry.with(lines.with_ansi(is_terminal))),
        LogFormat::Json => Box::new(registry.with(lines.json().flatten_event(true))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, is_terminal: bool) -> String {
        let page = Page::default();
        let writer = page.clone();
        let (filter, _) = filter(None);
        let subscriber = subscriber(format, filter, is_terminal, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(blobs = 3, "handed over");
            tracing::debug!("not by default");
            tracing::error!(target: "another_crate", "not by default");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_coloured_only_on_a_terminal() {
        assert!(logged(LogFormat::Text, true).contains('\u{1b}'));
        let plain = logged(LogFormat::Text, false);
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert!(plain.contains("handed over"), "{plain}");
        assert!(!plain.contains("not by default"), "{plain}");
    }

    #[test]
    fn json_is_one_object_a_line_with_its_fields_on_top() {
        let text = logged(LogFormat::Json, true);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1, "{text}");
        let object: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(object["message"], "handed over");
        assert_eq!(object["blobs"], 3);
        assert_eq!(object["level"], "INFO");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_told_and_the_default_is_used() {
        let (used, warning) = filter(Some(OsStr::new("vauchi_relay=loud")));
        assert_eq!(used.to_string(), DEFAULT_FILTER);
        assert!(warning.unwrap().contains("vauchi_relay=loud"));
    }

    #[test]
    fn no_filter_and_an_empty_one_mean_the_default() {
        for nothing in [None, Some(OsStr::new(""))] {
            let (used, warning) = filter(nothing);
            assert_eq!(used.to_string(), DEFAULT_FILTER);
            assert_eq!(warning, None);
        }
        let (used, _) = filter(Some(OsStr::new("debug")));
        assert_eq!(used.to_string(), "debug");
    }
}
