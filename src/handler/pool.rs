//! Which child gets which call. Pure.
//!
//! A call goes to the child with the fewest calls among those that have room; where none has, it waits its turn. Two
//! kinds of call are special. One that must be alone takes the least busy child, which then gets nothing new, and goes
//! there when that child is idle. And one whose event is still with a child (its first caller lost the right to it and
//! went away) waits until that child is done with it, so that no event is with the children twice.

use super::talk::{Freed, Job, Key};
use std::collections::{HashSet, VecDeque};
use tokio::time::Instant;

/// Where calls go.
pub(super) struct Pool {
    seats: Vec<Seat>,
    /// In the order of their calls.
    waiting: VecDeque<Job>,
    /// Taken out of `waiting` because an event of theirs is with a child.
    held: Vec<Job>,
    /// The events that are with children.
    running: HashSet<Key>,
    /// Why the last child went down.
    why: String,
    /// Since when no child is up.
    down_since: Option<Instant>,
}

/// One child as the pool knows it.
#[derive(Default)]
struct Seat {
    /// How many calls it takes; `None` while it is down.
    up: Option<usize>,
    /// It gets nothing new.
    closed: bool,
    /// Calls that it has.
    load: usize,
    /// One of them must be alone.
    alone: bool,
    /// A call that must be alone, and waits for the child to become idle.
    reserved: Option<Job>,
}

impl Seat {
    fn takes(&self) -> bool {
        !self.closed && !self.alone && self.reserved.is_none() && self.up.is_some_and(|room| self.load < room)
    }
}

impl Pool {
    /// A pool of children that are all down.
    pub(super) fn new(children: usize, now: Instant) -> Self {
        Self {
            seats: (0..children).map(|_| Seat::default()).collect(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            running: HashSet::new(),
            why: "child could not be started yet".to_owned(),
            down_since: Some(now),
        }
    }

    /// Takes a call.
    pub(super) fn wait(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Number of calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() + self.held.len()
    }

    /// The next call and the child that gets it.
    pub(super) fn next(&mut self) -> Option<(usize, Job)> {
        for (index, seat) in self.seats.iter_mut().enumerate() {
            if seat.up.is_some()
                && !seat.closed
                && seat.load == 0
                && let Some(job) = seat.reserved.take()
            {
                seat.load = 1;
                seat.alone = true;
                return Some((index, job));
            }
        }
        loop {
            let job = self.waiting.pop_front()?;
            if job.reply.is_closed() {
                continue;
            }
            if job.keys().any(|key| self.running.contains(&key)) {
                self.held.push(job);
                continue;
            }
            let seats = self.seats.iter_mut().enumerate().filter(|(_, seat)| seat.takes());
            let Some((index, seat)) = seats.min_by_key(|(_, seat)| seat.load) else {
                self.waiting.push_front(job);
                return None;
            };
            self.running.extend(job.keys());
            if job.alone() && seat.load > 0 {
                seat.reserved = Some(job);
                continue;
            }
            seat.load += 1;
            seat.alone = job.alone();
            return Some((index, job));
        }
    }

    /// A child is up, and takes `concurrency` calls at a time.
    pub(super) fn up(&mut self, seat: usize, concurrency: usize) {
        self.seats[seat] = Seat { up: Some(concurrency), ..Seat::default() };
        self.down_since = None;
    }

    /// A child has finished some calls.
    pub(super) fn freed(&mut self, seat: usize, freed: Freed) {
        let seat = &mut self.seats[seat];
        seat.load = seat.load.saturating_sub(freed.calls);
        seat.alone &= seat.load > 0;
        self.release(freed.keys);
    }

    /// A child gets nothing new, and gives back what it has not begun.
    pub(super) fn closed(&mut self, seat: usize, back: Vec<Job>) {
        self.seats[seat].closed = true;
        self.take_back(seat, back);
    }

    /// A child has ended.
    pub(super) fn down(&mut self, seat: usize, why: String, back: Vec<Job>, now: Instant) {
        self.why = why;
        self.take_back(seat, back);
        self.seats[seat] = Seat::default();
        if self.seats.iter().all(|seat| seat.up.is_none()) {
            self.down_since.get_or_insert(now);
        }
    }

    /// Calls that come back keep their place before all others.
    pub(super) fn take_back(&mut self, seat: usize, back: Vec<Job>) {
        let seat = &mut self.seats[seat];
        seat.load = seat.load.saturating_sub(back.len());
        let back: Vec<Job> = back.into_iter().chain(seat.reserved.take()).collect();
        let keys: Vec<Key> = back.iter().flat_map(Job::keys).collect();
        for job in back.into_iter().rev() {
            self.waiting.push_front(job);
        }
        self.release(keys);
    }

    fn release(&mut self, keys: Vec<Key>) {
        for key in keys {
            self.running.remove(&key);
        }
        for job in self.held.drain(..).rev() {
            self.waiting.push_front(job);
        }
    }

    /// When the first waiting call will have waited for its timeout while no child was up. As long as one is, calls
    /// wait for their turn: each call in a child ends within its own timeout.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let since = self.down_since?;
        self.waiting.iter().chain(&self.held).filter_map(|job| due(job, since)).min()
    }

    /// Takes out the calls that have waited for so long, with the reason.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<Job>, &str) {
        let Some(since) = self.down_since else { return (Vec::new(), &self.why) };
        let waiting = self.held.drain(..).chain(self.waiting.drain(..));
        let (late, rest): (Vec<Job>, Vec<Job>) = waiting.partition(|job| due(job, since).is_some_and(|due| due <= now));
        self.waiting = rest.into();
        (late, &self.why)
    }

    /// Takes out all calls that wait.
    pub(super) fn dismiss(&mut self) -> Vec<Job> {
        let reserved: Vec<Job> = self.seats.iter_mut().filter_map(|seat| seat.reserved.take()).collect();
        reserved.into_iter().chain(self.held.drain(..)).chain(self.waiting.drain(..)).collect()
    }
}

fn due(job: &Job, down_since: Instant) -> Option<Instant> {
    job.since.max(down_since).checked_add(job.call.timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::fixture;
    use tokio::sync::oneshot;
    use tokio::time::Duration;

    fn job(added_id: u64, alone: bool) -> (Job, oneshot::Receiver<Vec<crate::cell::Verdict>>) {
        let (reply, answer) = oneshot::channel();
        let mut event = fixture::event(added_id, "{}");
        event.alone = alone;
        let call = crate::cell::Call::new(vec![event], Duration::from_secs(30));
        (Job { call, reply, since: Instant::now() }, answer)
    }

    fn place(pool: &mut Pool) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| pool.next()).map(|(seat, job)| (seat, job.call.events[0].cell.added_id.0)).collect()
    }

    fn freed(pool: &mut Pool, seat: usize, added_id: u64) {
        let keys = vec![(crate::cell::ShardId(fixture::SHARD), crate::cell::AddedId(added_id))];
        pool.freed(seat, Freed { calls: 1, keys });
    }

    #[test]
    fn calls_go_to_the_least_busy_child() {
        let mut pool = Pool::new(2, Instant::now());
        let mut answers = Vec::new();
        for n in 1..=5 {
            let (job, answer) = job(n, false);
            pool.wait(job);
            answers.push(answer);
        }
        assert_eq!(place(&mut pool), []);
        pool.up(0, 2);
        pool.up(1, 2);
        assert_eq!(place(&mut pool), [(0, 1), (1, 2), (0, 3), (1, 4)]);
        freed(&mut pool, 1, 2);
        assert_eq!(place(&mut pool), [(1, 5)]);
    }

    #[test]
    fn a_call_that_must_be_alone_waits_for_an_idle_child() {
        let mut pool = Pool::new(2, Instant::now());
        pool.up(0, 4);
        pool.up(1, 4);
        let mut answers = Vec::new();
        for (n, alone) in [(1, false), (2, false), (3, true), (4, false), (5, true), (6, false)] {
            let (job, answer) = job(n, alone);
            pool.wait(job);
            answers.push(answer);
        }
        // 3 reserves child 0, so 4 goes to child 1, which 5 reserves, and 6 finds no place.
        assert_eq!(place(&mut pool), [(0, 1), (1, 2), (1, 4)]);
        freed(&mut pool, 0, 1);
        assert_eq!(place(&mut pool), [(0, 3)]);
        freed(&mut pool, 1, 2);
        assert_eq!(place(&mut pool), []);
        freed(&mut pool, 0, 3);
        assert_eq!(place(&mut pool), [(0, 6)]);
        freed(&mut pool, 1, 4);
        assert_eq!(place(&mut pool), [(1, 5)]);
    }

    #[test]
    fn an_event_is_never_with_the_children_twice() {
        let mut pool = Pool::new(2, Instant::now());
        pool.up(0, 4);
        pool.up(1, 4);
        let (first, first_answer) = job(1, false);
        pool.wait(first);
        assert_eq!(place(&mut pool), [(0, 1)]);
        drop(first_answer);
        let (second, _second_answer) = job(1, false);
        let (other, _other_answer) = job(2, false);
        pool.wait(second);
        pool.wait(other);
        assert_eq!(place(&mut pool), [(1, 2)]);
        assert_eq!(pool.waiting(), 1);
        freed(&mut pool, 0, 1);
        assert_eq!(place(&mut pool), [(0, 1)]);
    }

    #[test]
    fn what_a_child_has_not_begun_comes_back_first_and_in_order() {
        let mut pool = Pool::new(1, Instant::now());
        pool.up(0, 3);
        let mut answers = Vec::new();
        for n in 1..=4 {
            let (job, answer) = job(n, false);
            pool.wait(job);
            answers.push(answer);
        }
        let mut given: Vec<Job> = std::iter::from_fn(|| pool.next()).map(|(_, job)| job).collect();
        assert_eq!(given.len(), 3);
        let back = given.split_off(1);
        pool.closed(0, back);
        assert_eq!(place(&mut pool), []);
        freed(&mut pool, 0, 1);
        pool.down(0, "gone".to_owned(), Vec::new(), Instant::now());
        pool.up(0, 9);
        assert_eq!(place(&mut pool), [(0, 2), (0, 3), (0, 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_a_child_within_their_timeout() {
        let mut pool = Pool::new(1, Instant::now());
        let (first, _first_answer) = job(1, false);
        let since = first.since;
        pool.wait(first);
        assert_eq!(pool.deadline(), Some(since + Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(10)).await;
        let (second, _second_answer) = job(2, false);
        pool.wait(second);
        pool.down(0, "cannot start".to_owned(), Vec::new(), Instant::now());
        tokio::time::advance(Duration::from_secs(20)).await;
        let (expired, why) = pool.expire(Instant::now());
        assert_eq!((expired.len(), why), (1, "cannot start"));
        // While a child is up, calls wait for their turn, however long it takes.
        pool.up(0, 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((pool.expire(Instant::now()).0.len(), pool.deadline()), (0, None));
        let (third, _third_answer) = job(3, false);
        pool.wait(third);
        assert_eq!(place(&mut pool), [(0, 2)]);
        // And when it ends, they have their timeout for the next one.
        pool.freed(0, Freed { calls: 1, keys: Vec::new() });
        tokio::time::advance(Duration::from_secs(60)).await;
        pool.down(0, "ended".to_owned(), Vec::new(), Instant::now());
        assert_eq!(pool.deadline(), Some(Instant::now() + Duration::from_secs(30)));
    }

    #[test]
    fn calls_that_nobody_waits_for_are_forgotten() {
        let mut pool = Pool::new(1, Instant::now());
        let (gone, answer) = job(1, false);
        drop(answer);
        pool.wait(gone);
        pool.up(0, 1);
        assert_eq!(place(&mut pool), []);
        assert_eq!(pool.waiting(), 0);
    }
}
