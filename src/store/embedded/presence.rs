//! Whether the process of a session is still there: a flock on a file named by the session, held to the process's
//! end. The kernel lets go of it however the process ends, so that others know of a death at once.

use crate::cell::SessionId;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So long the file of a session that has ended is kept after it was first seen free: others learn of the death by it.
const KEPT: Duration = Duration::from_hours(24);

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

    /// Marks the session as present. To be called before the session is opened. Sweeps the files of sessions that ended
    /// long ago.
    ///
    /// # Errors
    /// When the file cannot be made, or another holds it.
    pub fn hold(&self, id: &SessionId) -> io::Result<Held> {
        let path = self.file(id)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        if let Err(error) = self.sweep() {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot clean up after sessions that have ended");
        }
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

    /// Removes the files of sessions that ended long ago. How old a file is says little, since a session may live for
    /// weeks: so the first sweep that finds it free writes a byte into it, and it goes a day after that.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match sweep_one(&path) {
                // Another one swept it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                swept => swept?,
            }
        }
        Ok(())
    }
}

fn sweep_one(path: &Path) -> io::Result<()> {
    let about = fs::metadata(path)?;
    let rested = SystemTime::now().duration_since(about.modified()?).is_ok_and(|age| age > KEPT);
    // A process may have made this file and not locked it yet, but not for a day.
    let fresh = path.extension().is_some_and(|extension| extension == "new");
    if fresh && !rested {
        return Ok(());
    }
    let file = OpenOptions::new().append(true).open(path)?;
    // Shared, so that somebody who looks whether the session is gone is not misled by this look.
    if file.try_lock_shared().is_err() {
        return Ok(());
    }
    if !fresh && about.len() == 0 {
        return (&file).write_all(b"\n");
    }
    if rested { fs::remove_file(path) } else { Ok(()) }
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
    }

    #[test]
    fn files_of_sessions_that_ended_long_ago_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let presence = Presence::of(&dir.path().join("a.db"));
        let age = |path: &Path| {
            let long_ago = SystemTime::now() - KEPT - Duration::from_secs(60);
            File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
        };
        let (alive, ended) = (SessionId::random(), SessionId::random());
        let _held = presence.hold(&alive).unwrap();
        drop(presence.hold(&ended).unwrap());
        let (just_made, left) = (presence.dir.join("abc.new"), presence.dir.join("def.new"));
        for path in [&just_made, &left] {
            File::create(path).unwrap();
        }
        for path in [&presence.file(&alive).unwrap(), &presence.file(&ended).unwrap(), &left] {
            age(path);
        }

        presence.sweep().unwrap();
        assert!(presence.is_gone(&ended), "it lived for days and has just ended: others must learn of it");
        assert!(just_made.exists(), "its process may be about to lock it");
        assert!(!left.exists(), "its process never came to lock it");
        presence.sweep().unwrap();
        assert!(presence.is_gone(&ended), "seen free a moment ago");
        age(&presence.file(&ended).unwrap());
        let _next = presence.hold(&SessionId::random()).unwrap();
        assert!(!presence.file(&ended).unwrap().exists(), "whoever holds a session sweeps");
        assert!(presence.file(&alive).unwrap().exists() && !presence.is_gone(&alive), "never one that is held");
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
