//! Fencing from the inside: until when this process may trust its session.
//!
//! Safe until the time *before* the last accepted heartbeat was sent, plus the session's length, less one heartbeat: an
//! observer counts the whole length from *after* it read that beat, so it cannot have declared the session dead before.
//! Measured on a clock that goes on while the machine is suspended. Past that time nothing is started or written.
//!
//! A heartbeat that is accepted later says that nobody declared the session dead; but what was true of the leases may have
//! changed meanwhile (an operator), so the fence opens again only after the coordinator has read them.

use super::OnControlOutage;
use crate::cell::{SessionId, clock, planted};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Shared by all that act for one worker. Starts closed.
///
/// It answers two questions. Whether something may be written is decided as said above, always. Whether a call may be started
/// is the same by default; with [`OnControlOutage::Continue`] calls go on past that time, until the session is over.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    state: Arc<State>,
    /// Of whom: 0 for whoever has the session of the moment.
    of: u64,
}

/// What a session goes by in a fence; never 0.
fn mark(session: &SessionId) -> u64 {
    xxh3_64_with_seed(session.as_str().as_bytes(), 0) | 1
}

#[derive(Debug)]
struct State {
    /// In nanoseconds since boot; 0 while there is no session.
    until: AtomicU64,
    /// The least that was left, in nanoseconds, when a heartbeat was accepted; the maximum while none was.
    lowest: AtomicU64,
    /// The time ran out once, and nobody has read the leases since.
    lapsed: AtomicBool,
    /// Whose session it is.
    session: AtomicU64,
    /// Calls go on past the safe time.
    calls_on: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            until: AtomicU64::new(0),
            lowest: AtomicU64::new(u64::MAX),
            lapsed: AtomicBool::new(false),
            session: AtomicU64::new(0),
            calls_on: false,
        }
    }
}

impl Fence {
    /// For those who act under this session: closed for good as soon as another one follows it.
    #[must_use]
    pub fn of(&self, session: &SessionId) -> Self {
        Self { state: self.state.clone(), of: mark(session) }
    }

    /// A session was opened, and is to be trusted until then.
    pub(super) fn enter(&self, session: &SessionId, until: Duration) {
        self.state.session.store(mark(session), SeqCst);
        self.extend(until);
        self.reopen();
    }

    /// Whether another session followed the one that this is of.
    fn is_over(&self) -> bool {
        self.of != 0 && self.of != self.state.session.load(SeqCst)
    }

    /// Of a worker that does so while its heartbeats are not answered.
    pub(super) fn new(outage: OnControlOutage) -> Self {
        let state = State { calls_on: outage == OnControlOutage::Continue, ..State::default() };
        Self { state: Arc::new(state), of: 0 }
    }

    /// Whether calls may be started.
    #[must_use]
    pub fn may_call(&self) -> bool {
        self.is_safe() || self.state.calls_on && !self.is_over() && self.state.until.load(SeqCst) > 0
    }

    /// Whether writes may be made.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        !self.margin().is_zero() || planted::is("the fence is never closed")
    }

    /// How long it stays safe if no further heartbeat is accepted; zero when it is not.
    #[must_use]
    pub fn margin(&self) -> Duration {
        if self.is_over() {
            return Duration::ZERO;
        }
        if self.state.lapsed.load(SeqCst) {
            return Duration::ZERO;
        }
        let margin = Duration::from_nanos(self.state.until.load(SeqCst)).saturating_sub(clock::boot());
        if margin.is_zero() {
            self.state.lapsed.store(true, SeqCst);
        }
        margin
    }

    /// A heartbeat was accepted.
    pub(super) fn extend(&self, until: Duration) {
        // Looks at the old time first: a lapse that nobody noticed counts.
        let margin = self.margin();
        if self.state.until.load(SeqCst) > 0 {
            self.state.lowest.fetch_min(u64::try_from(margin.as_nanos()).unwrap_or(u64::MAX), SeqCst);
        }
        self.state.until.fetch_max(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), SeqCst);
    }

    /// The least margin that a heartbeat found since this was last asked; `None` when there was no heartbeat.
    #[must_use]
    pub fn take_lowest(&self) -> Option<Duration> {
        let lowest = self.state.lowest.swap(u64::MAX, SeqCst);
        (lowest < u64::MAX).then(|| Duration::from_nanos(lowest))
    }

    /// The leases were read after a lapse. Open again if a heartbeat was accepted recently enough.
    pub(super) fn reopen(&self) {
        self.state.lapsed.store(false, SeqCst);
    }

    /// The session is over, for good.
    pub(super) fn close(&self) {
        self.state.until.store(0, SeqCst);
        self.state.lapsed.store(true, SeqCst);
    }

    /// Whether it lapsed although heartbeats are accepted again.
    pub(super) fn wants_reading(&self) -> bool {
        let _ = self.margin();
        let until = Duration::from_nanos(self.state.until.load(SeqCst));
        self.state.lapsed.load(SeqCst) && until > clock::boot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Millis;

    #[tokio::test(start_paused = true)]
    async fn a_lapse_stays_until_the_leases_were_read() {
        clock::simulate(Millis(0));
        let second = Duration::from_secs(1);
        let fence = Fence::default();
        assert!(!fence.is_safe(), "closed before the first heartbeat");
        fence.extend(7 * second);
        fence.reopen();
        assert_eq!(fence.margin(), 7 * second);
        assert_eq!(fence.take_lowest(), None, "the first of a session says nothing");
        tokio::time::advance(3 * second).await;
        fence.extend(8 * second);
        tokio::time::advance(second).await;
        fence.extend(8 * second);
        assert_eq!((fence.take_lowest(), fence.take_lowest()), (Some(4 * second), None));
        tokio::time::advance(4 * second).await;
        // Nobody looked while the time ran out; the heartbeat comes first.
        fence.extend(15 * second);
        assert!(!fence.is_safe());
        assert_eq!(fence.take_lowest(), Some(Duration::ZERO));
        assert!(fence.wants_reading());
        fence.reopen();
        assert!(fence.is_safe());
        fence.close();
        fence.reopen();
        assert!(!fence.is_safe());
    }

    /// What still runs for a dead session is not let in by the next one.
    #[tokio::test(start_paused = true)]
    async fn a_new_session_opens_nothing_for_the_one_before() {
        clock::simulate(Millis(0));
        let (first, second) = (SessionId::from_stored("first"), SessionId::from_stored("second"));
        let fence = Fence::default();
        fence.enter(&first, Duration::from_secs(7));
        let before = fence.of(&first);
        assert!(before.is_safe() && fence.is_safe());
        fence.close();
        assert!(!before.is_safe());
        fence.enter(&second, Duration::from_secs(20));
        assert!(fence.is_safe() && fence.of(&second).is_safe());
        assert!(!before.is_safe(), "its tasks may not have heard of its end");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_go_on_past_the_safe_time_only_where_somebody_wants_it_and_never_past_the_session() {
        clock::simulate(Millis(0));
        let second = Duration::from_secs(1);
        for (outage, goes_on) in [(OnControlOutage::Stop, false), (OnControlOutage::Continue, true)] {
            let fence = Fence::new(outage);
            assert!(!fence.may_call(), "no session yet");
            fence.extend(clock::boot() + 7 * second);
            fence.reopen();
            assert!(fence.may_call() && fence.is_safe());
            tokio::time::advance(8 * second).await;
            assert_eq!((fence.may_call(), fence.is_safe()), (goes_on, false), "{outage:?}");
            fence.close();
            assert!(!fence.may_call(), "the session is over");
        }
    }
}
