//! A database on a server: can it be reached, and is it set as the relay needs it.

use std::io;

use tokio::runtime::Builder;

use super::Finding;
use super::disk::{data_dir, volume};
use crate::config::{Config, Database};
use crate::secrets::Secret;
use crate::server::{self, StartError};
use crate::store::postgres;

/// A database on a server, and the folder of the secret where that is not given.
pub(super) fn database(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "database";
    let mut findings = Vec::new();
    if config.needs_data_dir() {
        findings.push(match data_dir(config) {
            Ok((_, finding)) | Err(finding) => finding,
        });
        findings.extend(volume(config));
    }
    let Some(database) = config.database.clone() else {
        findings.push(Finding::fail(SUBJECT, StartError::NoDatabase.to_string()));
        return findings;
    };
    let file = server::secret_file(config);
    let secret = Secret::load(&file).ok();
    // A runtime of its own on a thread of its own, whoever calls this.
    let looking = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let secret = secret.as_ref().map(|secret| (secret, file));
        io::Result::Ok(runtime.block_on(postgres::look(&database, secret)))
    });
    let looked = looking
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    match looked {
        Ok(Ok(looked)) => {
            let place = config.database.as_ref().map(Database::place);
            let mut text = format!(
                "PostgreSQL {}, {}: takes writes; {} running relays use it",
                looked.version,
                place.unwrap_or_default(),
                looked.relays
            );
            if looked.is_empty {
                text += "; a start creates the tables";
            }
            findings.push(Finding::ok(SUBJECT, text));
            let advice = looked.advice.into_iter();
            findings.extend(advice.map(|line| Finding::warn(SUBJECT, line)));
        }
        Ok(Err(error)) => findings.push(Finding::fail(SUBJECT, error.to_string())),
        Err(error) => {
            let text = format!("cannot look at the database: {error}");
            findings.push(Finding::fail(SUBJECT, text));
        }
    }
    findings
}
