//! The relay's secret: is it there, and do others of this machine keep out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Finding;
use crate::cli::banner::full_path;
use crate::config::Config;
use crate::secrets::{SECRET_FILE, Secret, SecretError};
use crate::server::{self, StartError};

/// What a start would make of it.
pub(super) fn secret(config: &Config) -> Option<Finding> {
    const SUBJECT: &str = "secret";
    if let Some(path) = &config.secret_file {
        return Some(match Secret::load(path) {
            Ok(_) => privacy_of(path),
            Err(error) => Finding::fail(SUBJECT, StartError::SecretFile(error).to_string()),
        });
    }
    if !config.needs_data_dir() {
        return None;
    }
    let path = config.data_dir.join(SECRET_FILE);
    if config.storage.keeps_files() && server::is_secret_gone(&config.data_dir) {
        let path = full_path(&path);
        return Some(Finding::fail(
            SUBJECT,
            StartError::SecretGone { path }.to_string(),
        ));
    }
    Some(match Secret::load(&path) {
        Ok(_) => privacy_of(&path),
        Err(SecretError::Missing(_)) => Finding::ok(
            SUBJECT,
            format!("{} does not exist; a start creates it", full_path(&path)),
        ),
        Err(error) => Finding::fail(SUBJECT, StartError::Secret(error).to_string()),
    })
}

/// A group may read it, as container platforms arrange it; more is too much.
fn privacy_of(path: &Path) -> Finding {
    const SUBJECT: &str = "secret";
    const TOO_OPEN: u32 = 0o027;
    let shown = full_path(path);
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & TOO_OPEN == 0 => {
            Finding::ok(SUBJECT, format!("{shown}: readable, permissions OK"))
        }
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            let text = format!(
                "{shown} is accessible to other users (mode {mode:03o}); run: chmod 600 {shown}"
            );
            Finding::warn(SUBJECT, text)
        }
        Err(error) => Finding::fail(SUBJECT, format!("{shown}: {error}")),
    }
}
