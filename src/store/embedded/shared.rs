//! One engine a file and process: who opens a file that is open in this process gets the same engine.
//!
//! Not for economy: SQLite's locks on a file are the process's (POSIX). Whoever closes any handle of his own on that file,
//! even one that only read its first bytes, drops all of them, and another process may then take the file for unused.

use super::engine::Engine;
use super::file::FileError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use tokio::time::Instant;

/// What is open in this process, or is being opened or closed, by path.
static OPEN: Mutex<BTreeMap<PathBuf, Weak<Engine>>> = Mutex::new(BTreeMap::new());
/// Rung when something in [`OPEN`] has changed.
static CHANGED: Condvar = Condvar::new();

fn open() -> MutexGuard<'static, BTreeMap<PathBuf, Weak<Engine>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to open a file; its place is free again when this is dropped, after the engine that holds it.
pub(super) struct Place(PathBuf);

/// What there is at a path.
pub(super) enum Taken {
    /// Nothing: it may be opened.
    Free(Place),
    /// An engine that is open.
    Shared(Arc<Engine>),
}

/// Takes the place of a file, or what is open there. Waits until the deadline for one that is being opened or closed.
pub(super) fn take(path: &Path, deadline: Instant) -> Result<Taken, FileError> {
    let path = whole(path);
    let mut all = open();
    loop {
        let Some(engine) = all.get(&path) else {
            all.insert(path.clone(), Weak::new());
            return Ok(Taken::Free(Place(path)));
        };
        if let Some(engine) = engine.upgrade() {
            return Ok(Taken::Shared(engine));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FileError::Locked(format!(
                "{} is still being opened or closed by this process",
                path.display()
            )));
        }
        all = CHANGED.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Tells the engine at a place to those who come later. It must hold that place.
pub(super) fn opened(place: &Place, engine: &Arc<Engine>) {
    open().insert(place.0.clone(), Arc::downgrade(engine));
    CHANGED.notify_all();
}

impl Drop for Place {
    fn drop(&mut self) {
        open().remove(&self.0);
        CHANGED.notify_all();
    }
}

/// The path without links, as far as it exists.
fn whole(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path,
    }
}
