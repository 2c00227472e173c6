//! Whether the process of a session is still there: a flock on a file named by the session, held to the process's
//! end. The kernel lets go of it however the process ends, so that others know of a death at once.

use crate::cell::SessionId;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The presence files of an embedded store, in `<file>.sessions/`.
#[derive(Clone, Debug)]
pub struct Presence {
    dir: PathBuf,
}

/// A session's presence; ends when dropped, at the latest with the process.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

impl Presence {
    pub(crate) fn of(store: &Path) -> Self {
        let mut dir = store.as_os_str().to_owned();
        dir.push(".sessions");
        Self { dir: dir.into() }
    }

    fn file(&self, id: &SessionId) -> io::Result<PathBuf> {
        let name = id.as_str();
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(self.dir.join(name)) } else { Err(io::Error::other("not the id of a session")) }
    }

    /// Marks the session as present. To be called before the session is opened.
    ///
    /// # Errors
    /// When the file cannot be made, or another holds it.
    pub fn hold(&self, id: &SessionId) -> io::Result<Held> {
        let path = self.file(id)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Locked under another name first: nobody must see the file unlocked before the session has ended.
        let fresh = self.dir.join(format!("{id}.new"));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&fresh)?;
        file.try_lock()?;
        fs::rename(&fresh, &path)?;
        Ok(Held { _file: file })
    }

    /// Whether the session was held here once and its process has ended. `false` is no proof of life: the session
    /// may run on another host, or may never have been held.
    #[must_use]
    pub fn is_gone(&self, id: &SessionId) -> bool {
        let file = self.file(id).and_then(File::open);
        file.is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    /// Removes the file of a session that was swept. One that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget(&self, id: &SessionId) -> io::Result<()> {
        match fs::remove_file(self.file(id)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_gone_when_its_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let presence = Presence::of(&dir.path().join("a.db"));
        let id = SessionId::random();
        assert!(!presence.is_gone(&id), "never held");
        let held = presence.hold(&id).unwrap();
        assert!(!presence.is_gone(&id), "held");
        drop(held);
        assert!(presence.is_gone(&id));
        assert!(presence.is_gone(&id), "looking changes nothing");
        presence.forget(&id).unwrap();
        presence.forget(&id).unwrap();
        assert!(!presence.is_gone(&id), "forgotten");
    }

    #[test]
    fn an_id_never_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let presence = Presence::of(&dir.path().join("a.db"));
        for bad in ["", "../x", "a/b", "."] {
            let id = SessionId::from_stored(bad);
            assert!(presence.hold(&id).is_err() && !presence.is_gone(&id), "{bad}");
        }
    }

    #[test]
    fn two_who_look_at_once_do_not_hide_the_death_from_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let presence = Presence::of(&dir.path().join("a.db"));
        let id = SessionId::random();
        drop(presence.hold(&id).unwrap());
        let other = File::open(presence.file(&id).unwrap()).unwrap();
        other.try_lock_shared().unwrap();
        assert!(presence.is_gone(&id));
    }
}
