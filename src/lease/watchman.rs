//! Who is alive, as one observer sees it. Pure: readings and the observer's clock go in, decisions come out.
//!
//! A session is taken for dead when its beat stood still for that session's own length by the observer's clock, counted
//! from after the reading that first saw the beat. When the observer's own readings failed or came late, it cannot tell
//! whose fault the silence was, and starts all its timers again: an outage must not end in mass death.

use crate::cell::{Role, Session, SessionId, SessionState, planted};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A reading of all sessions, compared with those before.
#[derive(Debug)]
pub struct Watchman {
    me: SessionId,
    /// Longest time between two readings that counts as watching.
    patience: Duration,
    /// A joined worker is acted on after this long without a change, or after three times this.
    settle: Duration,
    seen: BTreeMap<SessionId, Seen>,
    last_reading: Option<Duration>,
    /// Workers that assignment counts with.
    roster: BTreeSet<SessionId>,
    /// Live workers of the last reading, since when they are the same, and since when somebody waits to be counted.
    live: BTreeSet<SessionId>,
    unchanged_since: Duration,
    waiting_since: Option<Duration>,
}

#[derive(Debug)]
struct Seen {
    beat: u64,
    since: Duration,
}

/// What a reading showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Sessions to be declared dead, with the beat that stood still.
    pub dead: Vec<(SessionId, u64)>,
    /// Whether the roster changed.
    pub changed: bool,
}

impl Watchman {
    /// Has seen nothing. `membership` is the interval of readings, `settle` how long a join waits.
    #[must_use]
    pub fn new(me: SessionId, membership: Duration, settle: Duration) -> Self {
        Self {
            me,
            patience: membership * 3 + Duration::from_secs(1),
            settle,
            seen: BTreeMap::new(),
            last_reading: None,
            roster: BTreeSet::new(),
            live: BTreeSet::new(),
            unchanged_since: Duration::ZERO,
            waiting_since: None,
        }
    }

    /// Workers to share the shards among.
    #[must_use]
    pub fn roster(&self) -> &BTreeSet<SessionId> {
        &self.roster
    }

    /// A reading or a heartbeat of the observer itself failed: all timers start again.
    pub fn disturbed(&mut self) {
        self.last_reading = None;
    }

    /// A reading that ended at `now`. `gone` tells of a session whose process has ended for certain.
    pub fn reading(&mut self, now: Duration, sessions: &[Session], gone: impl Fn(&SessionId) -> bool) -> Findings {
        let watching = self.last_reading.is_some_and(|last| now.saturating_sub(last) <= self.patience);
        self.last_reading = Some(now);
        let alive = |session: &&Session| session.state != SessionState::Dead;
        self.seen.retain(|id, _| sessions.iter().filter(alive).any(|session| session.id == *id));
        let mut dead = Vec::new();
        for session in sessions.iter().filter(alive).filter(|session| session.id != self.me) {
            let fresh = Seen { beat: session.beat, since: now };
            let seen = self.seen.entry(session.id.clone()).or_insert(fresh);
            if seen.beat != session.beat || !watching {
                *seen = Seen { beat: session.beat, since: now };
            }
            let silent = now.saturating_sub(seen.since);
            let hasty = planted::is("death at the first sight") && silent > Duration::ZERO;
            if hasty || gone(&session.id) || silent >= session.length + self.delay(&session.id, sessions) {
                dead.push((session.id.clone(), session.beat));
            }
        }
        let changed = self.count(now, sessions);
        Findings { dead, changed }
    }

    /// Observers take turns in declaring a death, so that one write does it: a membership interval for each that comes
    /// before this one.
    fn delay(&self, victim: &SessionId, sessions: &[Session]) -> Duration {
        let rank = |id: &SessionId| {
            let seed = xxh3_64_with_seed(victim.as_str().as_bytes(), 0);
            xxh3_64_with_seed(id.as_str().as_bytes(), seed)
        };
        let mine = rank(&self.me);
        let observers = sessions.iter().filter(|s| s.state == SessionState::Live && s.role == Role::Worker);
        let before = observers.filter(|s| s.id != *victim && s.id != self.me && rank(&s.id) < mine).count();
        self.patience / 4 * u32::try_from(before.min(8)).unwrap_or(8)
    }

    /// Deaths and drains count at once; a join when the membership has settled, or at once when nobody else is there.
    fn count(&mut self, now: Duration, sessions: &[Session]) -> bool {
        let workers = sessions.iter().filter(|s| s.state == SessionState::Live && s.role == Role::Worker);
        let live: BTreeSet<SessionId> = workers.map(|session| session.id.clone()).collect();
        if live != self.live {
            self.live.clone_from(&live);
            self.unchanged_since = now;
        }
        let before = self.roster.clone();
        self.roster.retain(|id| live.contains(id));
        if live.is_subset(&self.roster) {
            self.waiting_since = None;
        } else {
            let waiting_since = *self.waiting_since.get_or_insert(now);
            let alone = live.len() == 1 && live.contains(&self.me);
            let settled = now.saturating_sub(self.unchanged_since) >= self.settle;
            if alone || settled || now.saturating_sub(waiting_since) >= self.settle * 3 {
                self.roster = live;
                self.waiting_since = None;
            }
        }
        self.roster != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(text: &str) -> SessionId {
        SessionId::from_stored(text)
    }

    fn session(name: &str, beat: u64, state: SessionState) -> Session {
        Session { state, beat, length: 10 * SECOND, ..Session::dead(&id(name)) }
    }

    fn live(name: &str, beat: u64) -> Session {
        session(name, beat, SessionState::Live)
    }

    fn never(_: &SessionId) -> bool {
        false
    }

    #[test]
    fn a_beat_that_stands_still_for_a_session_is_a_death() {
        let mut watchman = Watchman::new(id("a"), SECOND, 3 * SECOND);
        for second in 0..10 {
            assert_eq!(watchman.reading(second * SECOND, &[live("a", 1), live("b", 5)], never).dead, [], "{second}");
        }
        assert_eq!(watchman.reading(10 * SECOND, &[live("a", 1), live("b", 5)], never).dead, [(id("b"), 5)]);
        assert_eq!(watchman.reading(11 * SECOND, &[live("a", 1), live("b", 6)], never).dead, [], "it beats again");
    }

    #[test]
    fn an_outage_of_the_observer_kills_nobody() {
        let mut watchman = Watchman::new(id("a"), SECOND, 3 * SECOND);
        watchman.reading(Duration::ZERO, &[live("b", 5)], never);
        assert_eq!(watchman.reading(60 * SECOND, &[live("b", 5)], never).dead, [], "it did not watch meanwhile");
        watchman.reading(69 * SECOND, &[live("b", 5)], never);
        watchman.disturbed();
        assert_eq!(watchman.reading(70 * SECOND, &[live("b", 5)], never).dead, [], "its own heartbeat failed");
        for second in 71..80 {
            assert_eq!(watchman.reading(second * SECOND, &[live("b", 5)], never).dead, []);
        }
        assert_eq!(watchman.reading(80 * SECOND, &[live("b", 5)], never).dead.len(), 1);
    }

    #[test]
    fn a_process_that_ended_is_dead_at_once() {
        let mut watchman = Watchman::new(id("a"), SECOND, 3 * SECOND);
        let findings = watchman.reading(SECOND, &[live("a", 1), live("b", 5)], |session| *session == id("b"));
        assert_eq!(findings.dead, [(id("b"), 5)]);
    }

    #[test]
    fn observers_take_turns() {
        let sessions = [live("a", 1), live("b", 1), live("c", 1), live("victim", 9)];
        let mut delays: Vec<Duration> =
            ["a", "b", "c"].map(|me| Watchman::new(id(me), SECOND, SECOND).delay(&id("victim"), &sessions)).to_vec();
        delays.sort();
        assert_eq!(delays, [Duration::ZERO, SECOND, 2 * SECOND]);
    }

    #[test]
    fn a_join_waits_until_membership_settles_and_a_death_does_not() {
        let mut watchman = Watchman::new(id("a"), SECOND, 3 * SECOND);
        assert!(watchman.reading(SECOND, &[live("a", 1)], never).changed, "alone at the start: at once");
        assert!(!watchman.reading(2 * SECOND, &[live("a", 1), live("b", 1)], never).changed);
        assert!(!watchman.reading(4 * SECOND, &[live("a", 2), live("b", 2), live("c", 1)], never).changed, "again");
        assert!(watchman.reading(7 * SECOND, &[live("a", 3), live("b", 3), live("c", 2)], never).changed);
        assert_eq!(watchman.roster().len(), 3);
        let draining = session("b", 4, SessionState::Draining);
        assert!(watchman.reading(8 * SECOND, &[live("a", 4), draining, live("c", 3)], never).changed);
        assert_eq!(watchman.roster().len(), 2);
        let counted = (9..25).any(|second| {
            let newcomer = format!("n{second}");
            watchman.reading(second * SECOND, &[live("a", 4), live("c", 3), live(&newcomer, 1)], never);
            watchman.roster().len() == 3
        });
        assert!(counted, "churn does not keep a join waiting for ever");
    }
}
