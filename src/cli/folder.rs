//! A folder that gets what came, each blob in a file of its own.
//!
//! What is in a file is deleted at the relay next, so a file is whole and on the disk before it has its
//! name, and no other blob takes its place: senders choose the ids that files are named by, and two
//! mailboxes may hold blobs of one id.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;

use super::scratch::{Scratch, name_what_was_left};
use crate::filesystem::place::{folder_of, put_in_place};

/// Where files are put.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The file that is not whole yet; in a folder of this process, so that none cuts off another's.
    draft: PathBuf,
    _scratch: Scratch,
}

impl Folder {
    /// Makes the folder, unless it is there.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let made = fs::create_dir_all(path).and_then(|()| Scratch::new(path));
        let mut scratch =
            made.with_context(|| format!("cannot make the folder {}", path.display()))?;
        name_what_was_left(path);
        Ok(Self {
            path: path.to_owned(),
            draft: scratch.file("blob"),
            _scratch: scratch,
        })
    }

    /// Writes a file that is whole and on the disk when this returns; its name, which is `name` unless
    /// something else has that. What is there already is not written again. One call at a time.
    pub(super) async fn put(&self, name: &str, blob: Bytes) -> anyhow::Result<String> {
        let (folder, draft) = (self.path.clone(), self.draft.clone());
        let wanted = name.to_owned();
        let writing = tokio::task::spawn_blocking(move || put(&folder, &draft, &wanted, &blob));
        let written = writing
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        written.with_context(|| format!("cannot write {}", self.path.join(name).display()))
    }
}

fn put(folder: &Path, draft: &Path, wanted: &str, blob: &[u8]) -> io::Result<String> {
    // Never one that is there: a file in place may be a link to it.
    let mut file = File::create_new(draft)?;
    file.write_all(blob)?;
    file.sync_all()?;
    drop(file);
    let mut name = wanted.to_owned();
    // Ends with the first name that is free.
    for number in 2_u64.. {
        let path = folder.join(&name);
        match put_in_place(draft, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            placed => {
                placed?;
                break;
            }
        }
        if is_same(&path, blob)? {
            break;
        }
        name = format!("{wanted}-{number}");
    }
    // Renamed where there are no links.
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(name),
    }
}

/// Whether a file holds this blob, which is on the disk then. Who wrote it may have been stopped before
/// it was.
fn is_same(path: &Path, blob: &[u8]) -> io::Result<bool> {
    let told = fs::metadata(path);
    if !told.is_ok_and(|told| told.is_file() && told.len() == blob.len() as u64) {
        return Ok(false);
    }
    if fs::read(path)? != blob {
        return Ok(false);
    }
    File::open(path)?.sync_all()?;
    File::open(folder_of(path))?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_that_comes_again_is_one_file_and_another_of_its_name_has_its_own() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(&place.path().join("new")).unwrap();
        for (blob, name) in [
            ("first", "name"),
            ("second and longer", "name-2"),
            ("other", "name-3"),
            ("first", "name"),
            ("other", "name-3"),
        ] {
            let named = folder.put("name", blob.into()).await.unwrap();
            assert_eq!(named, name, "{blob}");
            let written = fs::read_to_string(place.path().join("new").join(name));
            assert_eq!(written.unwrap(), blob);
        }
        drop(folder);
        assert_eq!(fs::read_dir(place.path().join("new")).unwrap().count(), 3);
    }

    #[tokio::test]
    async fn what_can_not_be_written_is_named() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        fs::write(&folder.draft, "in the way").unwrap();
        let error = folder.put("name", Bytes::new()).await.unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
    }
}
