//! Logs: their format, their level and where they go.
//!
//! Lines go to standard error (`lines`). Only this crate's own records and those of crates that use `tracing`
//! are shown: records of the `log` crate are not bridged, because tungstenite writes whole frames
//! there. No mailbox id, blob, token or client address is ever logged.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogFormat;

mod lines;

pub use lines::Lines;

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "vauchi_relay=info";

/// What SIGHUP switches to.
const DEBUG_FILTER: &str = "vauchi_relay=debug";

/// Logging was set up before in this process; that first set-up stays.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up")]
pub struct AlreadySetUp;

/// The log of this process.
#[derive(Debug)]
pub struct Log {
    /// Which lines are logged.
    pub filter: LogFilter,
    /// Where they go.
    pub lines: Arc<Lines<io::Stderr>>,
}

/// Which lines are logged; changes at SIGHUP.
#[derive(Debug)]
pub struct LogFilter {
    handle: Handle,
    in_force: String,
    /// What `RUST_LOG` asked for at the start.
    configured: String,
    /// `RELAY_LOG_FILTER_FILE`.
    file: Option<PathBuf>,
}

type Handle = reload::Handle<EnvFilter, Registry>;

/// Sets up logging for the whole process, filtered by the file or, where it says nothing, by
/// `RUST_LOG`.
///
/// A filter that cannot be read is warned about and the next best is used: a relay that runs with
/// the usual logs is better than one that does not run.
pub fn init(format: LogFormat, file: Option<PathBuf>) -> Result<Log, AlreadySetUp> {
    let (configured, rust_log_warning) = configured(std::env::var_os("RUST_LOG").as_deref());
    let (in_force, file_warning) = match at_start(file.as_deref()) {
        Ok(said) => (said.unwrap_or_else(|| configured.clone()), None),
        Err(why) => (
            configured.clone(),
            Some(format!("{why}; using {configured}")),
        ),
    };
    let is_terminal = io::stderr().is_terminal();
    let filter = EnvFilter::new(&in_force);
    let lines = Arc::new(Lines::new(io::stderr()));
    let (subscriber, handle) = subscriber(format, filter, is_terminal, Arc::clone(&lines));
    // Not `SubscriberInitExt::init`, which would bridge the `log` crate once some dependency
    // switches that feature on.
    tracing::subscriber::set_global_default(subscriber).map_err(|_| AlreadySetUp)?;
    for warning in rust_log_warning.into_iter().chain(file_warning) {
        tracing::warn!("{warning}");
    }
    let filter = LogFilter {
        handle,
        in_force,
        configured,
        file,
    };
    Ok(Log { filter, lines })
}

/// What is wrong with the filters that a start would use, without setting anything up.
pub fn faults(file: Option<&Path>) -> Vec<String> {
    let (_, rust_log) = configured(std::env::var_os("RUST_LOG").as_deref());
    rust_log.into_iter().chain(at_start(file).err()).collect()
}

impl LogFilter {
    /// What SIGHUP does: puts in force what the file says now or, without a file, switches debug
    /// lines on or off.
    pub async fn on_hangup(&mut self) {
        match self.wanted().await {
            Ok(filter) => self.put_in_force(filter),
            Err(why) => {
                let in_force = &self.in_force;
                tracing::warn!("SIGHUP: {why}; keeping the log filter {in_force}");
            }
        }
    }

    async fn wanted(&self) -> Result<String, String> {
        let said = match &self.file {
            Some(path) => said_by_file(path, tokio::fs::read_to_string(path).await)?,
            None if self.in_force == DEBUG_FILTER => None,
            None => Some(DEBUG_FILTER.to_owned()),
        };
        Ok(said.unwrap_or_else(|| self.configured.clone()))
    }

    fn put_in_force(&mut self, filter: String) {
        let tell = || tracing::info!("SIGHUP: the log filter is now {filter}");
        // Told under whichever of the two filters shows it.
        let is_shown = tracing::enabled!(tracing::Level::INFO);
        if is_shown {
            tell();
        }
        if let Err(error) = self.handle.reload(EnvFilter::new(&filter)) {
            tracing::error!(%error, "SIGHUP: cannot change the log filter");
            return;
        }
        if !is_shown {
            tell();
        }
        self.in_force = filter;
    }
}

/// The filter that `RUST_LOG` asks for, or the default and why it was not taken.
fn configured(rust_log: Option<&OsStr>) -> (String, Option<String>) {
    let default = DEFAULT_FILTER.to_owned();
    let Some(text) = rust_log.filter(|text| !text.is_empty()) else {
        return (default, None);
    };
    let text = text.to_string_lossy();
    match EnvFilter::try_new(&text) {
        Ok(_) => (text.into_owned(), None),
        Err(error) => {
            let warning = format!(
                "RUST_LOG: {text:?} is not a valid filter ({error}); using {DEFAULT_FILTER}; a valid one is {DEBUG_FILTER}"
            );
            (default, Some(warning))
        }
    }
}

fn at_start(file: Option<&Path>) -> Result<Option<String>, String> {
    match file {
        Some(path) => said_by_file(path, std::fs::read_to_string(path)),
        None => Ok(None),
    }
}

/// The filter in the file; `None` when it is missing or empty, which means: as without a file.
fn said_by_file(path: &Path, read: io::Result<String>) -> Result<Option<String>, String> {
    let place = format!("RELAY_LOG_FILTER_FILE: {}", path.display());
    let text = match read {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{place}: {error}")),
    };
    let words = text.split([',', '\n']).map(str::trim);
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return Ok(None);
    }
    let filter = words.join(",");
    match EnvFilter::try_new(&filter) {
        Ok(_) => Ok(Some(filter)),
        Err(error) => Err(format!(
            "{place}: not a valid filter ({error}); a valid one is {DEBUG_FILTER}"
        )),
    }
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    is_terminal: bool,
    writer: W,
) -> (Box<dyn Subscriber + Send + Sync>, Handle)
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer);
    let (filter, handle) = reload::Layer::new(filter);
    let registry = Registry::default().with(filter);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match format {
        LogFormat::Text => Box::new(registry.with(lines.with_ansi(is_terminal))),
        LogFormat::Json => Box::new(registry.with(lines.json().flatten_event(true))),
    };
    (subscriber, handle)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let filter = EnvFilter::new(configured(None).0);
        let (subscriber, _) = subscriber(format, filter, is_terminal, move || writer.clone());
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
        let (used, warning) = configured(Some(OsStr::new("vauchi_relay=loud")));
        assert_eq!(used, DEFAULT_FILTER);
        assert!(warning.unwrap().contains("vauchi_relay=loud"));
    }

    #[test]
    fn no_filter_and_an_empty_one_mean_the_default() {
        for nothing in [None, Some(OsStr::new(""))] {
            assert_eq!(configured(nothing), (DEFAULT_FILTER.to_owned(), None));
        }
        let (used, _) = configured(Some(OsStr::new("debug")));
        assert_eq!(used, "debug");
    }

    #[test]
    fn a_file_says_a_filter_or_nothing_or_is_told_by_its_name() {
        let path = Path::new("/etc/filter");
        let said = |text: &str| said_by_file(path, Ok(text.to_owned()));
        assert_eq!(
            said(" vauchi_relay=debug\n\nhyper=warn, \n"),
            Ok(Some("vauchi_relay=debug,hyper=warn".to_owned()))
        );
        assert_eq!(said(" \n"), Ok(None));
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(said_by_file(path, Err(missing)), Ok(None));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        for error in [said("vauchi_relay=loud"), said_by_file(path, Err(denied))] {
            let why = error.unwrap_err();
            assert!(
                why.starts_with("RELAY_LOG_FILTER_FILE: /etc/filter: "),
                "{why}"
            );
        }
    }

    #[tokio::test]
    async fn hanging_up_switches_debug_lines_on_and_off() {
        let page = Page::default();
        let writer = page.clone();
        let (subscriber, handle) = subscriber(
            LogFormat::Text,
            EnvFilter::new("vauchi_relay=warn"),
            false,
            move || writer.clone(),
        );
        let mut filter = LogFilter {
            handle,
            in_force: "vauchi_relay=warn".to_owned(),
            configured: "vauchi_relay=warn".to_owned(),
            file: None,
        };
        let _guard = tracing::subscriber::set_default(subscriber);
        tracing::debug!("one");
        filter.on_hangup().await;
        tracing::debug!("two");
        filter.on_hangup().await;
        tracing::info!("three");
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("SIGHUP: the log filter is now vauchi_relay=debug"));
        assert!(text.contains("two") && !text.contains("one") && !text.contains("three"));
        assert!(text.contains("SIGHUP: the log filter is now vauchi_relay=warn"));
    }
}
