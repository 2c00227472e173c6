//! What the service manager is told: datagrams of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names, as systemd
//! defines them in sd_notify(3). Without that variable nothing is told, and nothing is missing.
//!
//! Nothing here waits: a manager that does not read must not hold up the worker. What the socket does not take is kept, in
//! order, and sent with the next notice.

use rustix::time::{ClockId, clock_gettime};
use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    io::{
        self,
        ErrorKind::{ConnectionRefused, ConnectionReset, NotConnected, NotFound},
    },
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    time::Duration,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

/// Between two statuses at least.
const STATUS: Duration = Duration::from_secs(1);
/// Notices that are kept for a manager that does not read; those about what follows on what come to a few.
const KEPT: usize = 16;

/// The manager of this service, if there is one.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    unsent: VecDeque<String>,
    leaving: bool,
    status: String,
    status_after: Option<Instant>,
    feeding: Option<Interval>,
    starving: bool,
}

impl Manager {
    /// That of this process: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID`. Within a tokio runtime.
    #[must_use]
    pub fn of_process() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let mine = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| mine && *usec > 0).map(Duration::from_micros);
        Self::at(&address, watchdog).unwrap_or_else(|error| {
            tracing::warn!(%error, ?address, "NOTIFY_SOCKET cannot be reached: the service manager is told nothing");
            Self::default()
        })
    }

    /// At a socket: a path, or `@` and a name in the abstract namespace. A watchdog is fed at a third of its time.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(Path::new(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        let feeding = watchdog.map(|watchdog| {
            let mut feeding = interval((watchdog / 3).max(Duration::from_millis(1)));
            feeding.set_missed_tick_behavior(MissedTickBehavior::Delay);
            feeding
        });
        Ok(Self { socket: Some(socket), feeding, ..Self::default() })
    }

    /// The service works: it has started, or has read its config again.
    pub fn ready(&mut self) {
        if !self.leaving {
            self.tell("READY=1".into());
        }
    }

    /// The service reads its config again; [`Manager::ready`] ends that, whatever came of it.
    pub fn reloading(&mut self) {
        if self.leaving {
            return;
        }
        let now = clock_gettime(ClockId::Monotonic);
        let usec = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)).as_micros();
        self.tell(format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// The service leaves, and will not be ready again.
    pub fn stopping(&mut self) {
        self.leaving = true;
        self.tell("STOPPING=1".into());
    }

    /// A line for people; told when it has changed, and at most once a second.
    pub fn status(&mut self, line: impl FnOnce() -> String) {
        if self.socket.is_none() || self.status_after.is_some_and(|after| Instant::now() < after) {
            return;
        }
        let line = line();
        if line != self.status {
            self.status_after = Some(Instant::now() + STATUS);
            if self.mention(format!("STATUS={}", line.replace('\n', " "))) {
                self.status = line;
            }
        }
    }

    /// Waits until the watchdog is to be fed; for ever where there is none. Loses nothing when dropped.
    pub async fn hungry(&mut self) {
        match &mut self.feeding {
            Some(feeding) => {
                feeding.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Feeds the watchdog, unless there are reasons not to: then the manager will end this process and start another.
    pub fn feed(&mut self, reasons: &[impl ToString]) {
        let starving = !reasons.is_empty();
        if !starving {
            self.mention("WATCHDOG=1".into());
        }
        if starving != std::mem::replace(&mut self.starving, starving) {
            let reasons = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            match starving {
                true => tracing::error!(
                    reasons,
                    "the watchdog is not fed any more: the service manager will end this process"
                ),
                false => tracing::warn!("the watchdog is fed again"),
            }
        }
    }

    /// Tells what counts: kept until it is sent.
    fn tell(&mut self, notice: String) {
        if self.socket.is_some() && self.unsent.len() < KEPT {
            self.unsent.push_back(notice);
        }
        self.send();
    }

    /// Tells what is out of date soon: nothing, while what was told before is not sent.
    fn mention(&mut self, notice: String) -> bool {
        self.send();
        let heard = self.unsent.is_empty();
        if heard {
            self.tell(notice);
        }
        heard
    }

    fn send(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(notice) = self.unsent.front() {
            match socket.send(notice.as_bytes()) {
                Ok(_) => self.unsent.pop_front(),
                Err(error) if matches!(error.kind(), ConnectionRefused | ConnectionReset | NotConnected | NotFound) => {
                    tracing::warn!(%error, "the service manager is gone: it is told nothing any more");
                    *self = Self::default();
                    return;
                }
                // It does not read just now.
                Err(_) => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let next = || socket.recv(&mut buffer).ok().map(|n| String::from_utf8(buffer[..n].to_vec()).unwrap());
        std::iter::from_fn(next).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_hears_each_notice_once_and_a_status_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        assert!(Manager::at(path.as_os_str(), None).is_err(), "nobody listens");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut manager = Manager::at(path.as_os_str(), None).unwrap();
        manager.ready();
        manager.status(|| "a\nb".into());
        manager.status(|| "too soon".into());
        assert_eq!(heard(&socket), ["READY=1", "STATUS=a b"]);
        tokio::time::advance(STATUS).await;
        manager.status(|| "a\nb".into());
        assert_eq!(heard(&socket), [""; 0], "nothing new");
        manager.status(|| "c".into());
        manager.reloading();
        manager.stopping();
        manager.reloading();
        manager.ready();
        let heard = heard(&socket);
        assert_eq!(heard.len(), 3);
        assert_eq!((heard[0].as_str(), heard[2].as_str()), ("STATUS=c", "STOPPING=1"));
        let usec: u64 = heard[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        let now = clock_gettime(ClockId::Monotonic).tv_sec.unsigned_abs();
        assert!((now - 1000..=now).contains(&(usec / 1_000_000)), "{usec} at {now} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_is_fed_at_a_third_of_its_time_while_nothing_is_stuck() {
        let name = format!("cellhook-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let name = [b"@", name.as_bytes()].concat();
        let address = std::ffi::OsString::from_vec(name);
        let mut manager = Manager::at(&address, Some(Duration::from_secs(30))).unwrap();
        let start = Instant::now();
        for reasons in [&[][..], &["a is stuck"], &["a is stuck"], &[]] {
            manager.hungry().await;
            manager.feed(reasons);
        }
        assert_eq!(start.elapsed(), Duration::from_secs(30), "the first at once");
        assert_eq!(heard(&socket), ["WATCHDOG=1", "WATCHDOG=1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_that_does_not_read_holds_nobody_up_and_misses_nothing_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut manager = Manager::at(path.as_os_str(), None).unwrap();
        // Until its queue is full.
        while manager.unsent.is_empty() {
            manager.feed(&[""; 0]);
        }
        manager.ready();
        assert!(heard(&socket).iter().all(|notice| notice == "WATCHDOG=1"));
        manager.feed(&[""; 0]);
        manager.stopping();
        assert_eq!(heard(&socket), ["WATCHDOG=1", "READY=1", "WATCHDOG=1", "STOPPING=1"]);
        drop(socket);
        manager.stopping();
        assert!(manager.socket.is_none(), "gone: told once, and nothing follows");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_manager_nothing_is_told() {
        let mut manager = Manager::default();
        manager.ready();
        manager.status(|| panic!("nobody asks for it"));
        let fed = tokio::time::timeout(Duration::from_hours(1), manager.hungry());
        assert!(fed.await.is_err());
    }
}
