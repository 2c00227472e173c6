//! The file of an embedded store: how it is made, known again, and opened.
//!
//! A file of ours carries an application id in its SQLite header. It is put there before the engine sees the file,
//! so that no moment exists in which a store of ours looks like somebody else's, and a file without it is refused
//! before anything is written to it.

use super::Trouble;
use super::lock::LockFile;
use crate::store::config::Durability;
use dynoxide::Database;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;

/// Marks an SQLite file as a store of ours; `file` and SQLite's `PRAGMA application_id` show it.
const APPLICATION_ID: u32 = u32::from_be_bytes(*b"cehk");
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const PAGE: usize = 4096;

/// Why the file of an embedded store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory does not exist, or the path leads through something that is no directory.
    #[error("the directory of {path} cannot be used; make it, or set store.path to another place", path = .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// No right to read or write.
    #[error(
        "no right to write {path}; give this user the right to write the file and its directory, or set store.path",
        path = .0.display()
    )]
    Denied(PathBuf, #[source] io::Error),
    /// The file belongs to something else. Nothing was written to it.
    #[error("{path} is {what}, not a cellhook store; it was left as it is: set store.path to another file",
            path = .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Another process held the lock all the time.
    #[error("{0}")]
    Locked(String),
    /// This process has it open with another durability.
    #[error("{path} is open in this process with another store.durability; set the same for both", path = .0.display())]
    Durability(PathBuf),
    /// The operating system refused in another way.
    #[error("cannot open {path}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// The engine refused.
    #[error("cannot open {path}: {1}", path = .0.display())]
    Engine(PathBuf, String),
}

impl FileError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Directory(path.into(), error),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied(path.into(), error),
            _ => Self::Io(path.into(), error),
        }
    }
}

/// The connections of one process to the file.
pub(super) struct Opened {
    /// For the thread that writes.
    pub(super) write: Database,
    /// For the thread that reads.
    pub(super) read: Database,
    /// Theirs.
    pub(super) lock: LockFile,
}

/// Opens a store, making it if there is none.
pub(super) fn open(path: &Path, durability: Durability, deadline: Instant) -> Result<Opened, FileError> {
    // Before the lock file is made: beside a file that is not ours, nothing is left behind.
    look(path)?;
    let mut lock = LockFile::open(path).map_err(|error| FileError::io(path, error))?;
    let guard = lock.acquire(deadline, &AtomicBool::new(false)).map_err(|why| FileError::Locked(why.to_string()))?;
    if look(path)? == Look::Empty {
        make(path).map_err(|error| FileError::io(path, error))?;
    }
    let write = connect(path, durability).map_err(|why| FileError::Engine(path.into(), why.to_string()))?;
    let read = connect(path, durability).map_err(|why| FileError::Engine(path.into(), why.to_string()))?;
    drop(guard);
    Ok(Opened { write, read, lock })
}

/// One more connection to a store that is open. The lock must be held: the engine writes when it opens.
pub(super) fn connect(path: &Path, durability: Durability) -> Result<Database, Trouble> {
    let name = path.to_str().ok_or_else(|| Trouble::not_executed("the path is not UTF-8"))?;
    let database = Database::new(name).map_err(|error| Trouble::not_executed(error.to_string()))?;
    if durability == Durability::Normal {
        // The engine's only switch to `synchronous = NORMAL`.
        database.disable_bulk_loading().map_err(|error| Trouble::not_executed(error.to_string()))?;
    }
    Ok(database)
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// No file, or one without a byte.
    Empty,
    /// A store of ours.
    Ours,
}

fn look(path: &Path) -> Result<Look, FileError> {
    let not_ours = |what| FileError::NotOurs { path: path.into(), what };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_directory(path) => return Ok(Look::Empty),
        Err(error) => return Err(FileError::io(path, error)),
    };
    let kind = file.metadata().map_err(|error| FileError::io(path, error))?.file_type();
    if !kind.is_file() {
        return Err(not_ours(if kind.is_dir() { "a directory" } else { "no regular file" }));
    }
    let mut head = Vec::new();
    file.take(100).read_to_end(&mut head).map_err(|error| FileError::io(path, error))?;
    match &head[..] {
        [] => Ok(Look::Empty),
        head if head.len() < 100 || !head.starts_with(MAGIC) => Err(not_ours("no SQLite file")),
        head if head[68..72] != APPLICATION_ID.to_be_bytes() => Err(not_ours("an SQLite file of something else")),
        _ => Ok(Look::Ours),
    }
}

fn has_directory(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.is_dir()
}

/// Makes an empty database that carries our mark, readable by this user alone; the engine gives its other files the
/// same rights. First under another name: a crash in the middle leaves no file that looks like somebody else's.
fn make(path: &Path) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&empty_database())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

/// The first page of an SQLite database without tables, by the file format that SQLite documents.
fn empty_database() -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, MAGIC);
    put(16, &4096_u16.to_be_bytes()); // page size
    put(18, &[1, 1, 0, 64, 32, 32]); // rollback journal until the engine says WAL; nothing reserved; fixed fractions
    put(24, &1_u32.to_be_bytes()); // change counter
    put(28, &1_u32.to_be_bytes()); // pages
    put(44, &4_u32.to_be_bytes()); // schema format
    put(56, &1_u32.to_be_bytes()); // UTF-8
    put(68, &APPLICATION_ID.to_be_bytes());
    put(92, &1_u32.to_be_bytes()); // the change counter for which the number of pages holds
    put(96, &3_045_000_u32.to_be_bytes()); // the version of SQLite that wrote
    put(100, &[0x0d, 0, 0, 0, 0]); // an empty leaf
    put(105, &4096_u16.to_be_bytes()); // its content begins at the end
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_new_store_is_private_and_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let opened = open(&path, Durability::Full, soon()).unwrap();
        for suffix in ["", "-wal", "-shm", ".lock"] {
            let file = dir.path().join(format!("a.db{suffix}"));
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{suffix}");
        }
        drop(opened);
        assert_eq!(look(&path).unwrap(), Look::Ours);
        assert!(open(&path, Durability::Normal, soon()).is_ok());
        assert_eq!(look(&path).unwrap(), Look::Ours);
    }

    #[test]
    fn an_empty_file_becomes_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        std::fs::write(&path, "").unwrap();
        assert!(open(&path, Durability::Full, soon()).is_ok());
        assert_eq!(look(&path).unwrap(), Look::Ours);
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let foreign_sqlite = {
            let other = dir.path().join("other.db");
            drop(Database::new(other.to_str().unwrap()).unwrap());
            std::fs::read(other).unwrap()
        };
        let cases = [(b"hello".to_vec(), "no SQLite file"), (foreign_sqlite, "an SQLite file of something else")];
        for (bytes, what) in cases {
            std::fs::write(&path, &bytes).unwrap();
            let error = open(&path, Durability::Full, soon()).err().unwrap().to_string();
            assert!(error.contains(what) && error.contains("a.db"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "left as it was");
            assert!(!dir.path().join("a.db.lock").exists(), "and nothing put beside it");
        }
        let error = open(dir.path(), Durability::Full, soon()).err().unwrap().to_string();
        assert!(error.contains("is a directory"), "{error}");
    }

    #[test]
    fn a_place_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        for place in ["absent/a.db", "file/a.db"] {
            let error = open(&dir.path().join(place), Durability::Full, soon()).err().unwrap();
            assert!(matches!(error, FileError::Directory(..)), "{error:?}");
            assert!(error.to_string().contains("store.path"));
        }
        let denied = FileError::io(&dir.path().join("a.db"), io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("no right to write"));
    }
}
