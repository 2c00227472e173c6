//! The turn-taking of the processes on one file: a flock on `<file>.lock`.
//!
//! The lock file is never deleted (that would make two holders) and its handle is close-on-exec (a child would keep
//! the lock after our end). It holds two lines: the pid of who took the lock last, and a number that whoever waits
//! changes again and again. The holder looks at that number when it lets go: changed means that somebody waits, and
//! it rests a moment before it comes again, because a flock itself knows no order. A frozen waiter changes nothing,
//! so it slows nobody down.

use super::Trouble;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io, thread};
use tokio::time::Instant;

/// After such a wait the log names who holds the lock.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// Where the pid and the number of the waiting stand; each line has 16 characters and its end.
const PID_AT: u64 = 0;
const HAND_AT: u64 = 17;

/// A handle on the lock file. Two handles exclude each other, in one process too.
pub(super) struct LockFile {
    path: PathBuf,
    file: File,
    seen_hand: [u8; 16],
    rest: Duration,
}

/// The lock, held until dropped.
pub(super) struct Guard<'a> {
    lock: &'a mut LockFile,
    since: Instant,
}

impl LockFile {
    /// Opens the lock file of a store, making it if there is none.
    pub(super) fn open(store: &Path) -> io::Result<Self> {
        let mut path = store.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let mut lock = Self { path, file, seen_hand: [0; 16], rest: Duration::ZERO };
        lock.seen_hand = lock.line(HAND_AT);
        Ok(lock)
    }

    /// Waits for the lock until the deadline, or until `stop` is set. Tries at least once.
    pub(super) fn acquire(&mut self, deadline: Instant, stop: &AtomicBool) -> Result<Guard<'_>, Trouble> {
        thread::sleep(std::mem::take(&mut self.rest));
        let began = Instant::now();
        let mut told = false;
        loop {
            match self.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(Trouble::not_executed(format!("cannot lock {}: {error}", self.path.display())));
                }
            }
            let waited = began.elapsed();
            if Instant::now() >= deadline {
                let (path, holder) = (self.path.display(), self.holder());
                let ms = waited.as_millis();
                return Err(Trouble::not_executed(format!("waited {ms} ms for the lock {path}, held by {holder}")));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Trouble::not_executed("the embedded store is closed"));
            }
            if waited >= LONG_WAIT && !told {
                told = true;
                tracing::warn!(lock = %self.path.display(), holder = %self.holder(), "long wait for the store's lock");
            }
            self.raise_hand();
            thread::sleep(match waited.as_millis() {
                0..20 => Duration::from_micros(100),
                20..1000 => Duration::from_millis(1),
                _ => Duration::from_millis(5),
            });
        }
        self.sign();
        Ok(Guard { lock: self, since: Instant::now() })
    }

    fn line(&self, at: u64) -> [u8; 16] {
        let mut line = [0; 16];
        // Shorter or unreadable: as if nobody had written.
        let _ = self.file.read_exact_at(&mut line, at);
        line
    }

    /// Notes our pid, unless it stands there.
    fn sign(&self) {
        let pid = format!("{:<16}\n", std::process::id());
        if self.line(PID_AT) != pid.as_bytes()[..16] {
            let _ = self.file.write_all_at(pid.as_bytes(), PID_AT);
        }
    }

    /// Tells the holder that somebody waits. A hint: nothing is lost when it cannot be written.
    fn raise_hand(&mut self) {
        let hand = format!("{:016x}\n", fastrand::u64(..));
        let _ = self.file.write_all_at(hand.as_bytes(), HAND_AT);
    }

    /// Who took the lock last, for people.
    fn holder(&self) -> Holder {
        let pid = String::from_utf8_lossy(&self.line(PID_AT)).trim().parse();
        Holder(pid.ok().map(|pid: u32| (pid, process_state(pid))))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lock.file.unlock() {
            // The kernel lets go at the latest when this process ends.
            tracing::error!(lock = %self.lock.path.display(), %error, "cannot let go of the store's lock");
        }
        let hand = self.lock.line(HAND_AT);
        if hand != self.lock.seen_hand {
            self.lock.seen_hand = hand;
            let held = self.since.elapsed();
            self.lock.rest = (held / 4).clamp(Duration::from_micros(200), Duration::from_millis(2));
        }
    }
}

/// A process with its state, as far as they are known.
struct Holder(Option<(u32, Option<char>)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((pid, state)) = self.0 else { return f.write_str("an unknown process") };
        let state = match state {
            Some('T' | 't') => "stopped; continue it with SIGCONT or end it",
            Some('D') => "waiting for the disk",
            Some('Z' | 'X') => "ended",
            Some(_) => "running",
            None => "not visible from here",
        };
        write!(f, "process {pid} ({state})")
    }
}

/// The state letter of a process, as `ps` shows it.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn who_waits_too_long_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let never = AtomicBool::new(false);
        let (mut first, mut second) = (LockFile::open(&path).unwrap(), LockFile::open(&path).unwrap());
        let guard = first.acquire(soon(), &never).unwrap();
        let refused = second.acquire(soon(), &never).err().unwrap();
        assert!(!refused.executed());
        let text = refused.to_string();
        assert!(text.contains(&format!("process {} (running)", std::process::id())), "{text}");
        drop(guard);
        assert_eq!(first.rest, Duration::from_millis(2), "it saw that somebody waits");
        assert!(second.acquire(soon(), &never).is_ok());
        let closed = AtomicBool::new(true);
        let _guard = first.acquire(soon(), &closed).unwrap();
        let far = Instant::now() + Duration::from_secs(600);
        assert!(second.acquire(far, &closed).err().unwrap().to_string().contains("closed"));
    }

    #[test]
    fn an_expired_deadline_still_allows_one_try() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = LockFile::open(&dir.path().join("a.db")).unwrap();
        assert!(lock.acquire(Instant::now(), &AtomicBool::new(false)).is_ok());
    }

    #[test]
    fn a_process_has_a_state() {
        assert!(process_state(std::process::id()).is_some_and(|state| state.is_ascii_alphabetic()));
        assert_eq!(process_state(u32::MAX), None);
        assert_eq!(Holder(Some((1, Some('T')))).to_string(), "process 1 (stopped; continue it with SIGCONT or end it)");
        assert_eq!(Holder(None).to_string(), "an unknown process");
    }
}
