//! The conversation with one child: what it was given, what it has answered, what it owes. Pure: bytes and times in,
//! bytes and verdicts out.

use super::{
    answer::{self, Misspoken},
    envelope,
    lines::{Line, excerpt},
    turns,
};
use crate::cell::{AddedId, Call, Event, ShardId, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tokio::{sync::oneshot, time::Instant};

/// Longest line in both directions, in bytes. A line to the child is longer only when a single event is.
pub(super) const LINE_MAX: usize = 4 * 1024 * 1024;
/// Bytes that may wait to be written; the calls behind them wait as calls.
const OUT_MAX: usize = 256 * 1024;
/// The fault of protocol after which a child gets no more calls.
const FAULTS_CLOSE: u32 = 3;
/// The fault after which it is not even waited for.
const FAULTS_KILL: u32 = 100;

/// Which event a call is about, within one source.
pub(super) type Key = (ShardId, AddedId);

/// A call on its way to a child.
pub(super) struct Job {
    pub(super) call: Call,
    /// Where the verdicts go. Closed when nobody waits for them any more.
    pub(super) reply: oneshot::Sender<Vec<Verdict>>,
    /// When the call was made.
    pub(super) since: Instant,
}

impl Job {
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.call.events.iter().map(|event| (event.cell.shard, event.cell.added_id))
    }

    /// Whether it must have a child for itself.
    pub(super) fn alone(&self) -> bool {
        self.call.events.iter().any(|event| event.alone)
    }

    /// Answers all its events alike.
    pub(super) fn answer(self, verdict: &Verdict) {
        // Nobody waits any more: then nobody needs it.
        let _ = self.reply.send(vec![verdict.clone(); self.call.events.len()]);
    }
}

/// A call that is on its way to the child or with it.
struct Running {
    job: Job,
    verdicts: Vec<Option<Verdict>>,
    /// Events without an answer.
    left: usize,
    deadline: Instant,
    /// Its time is over; it is answered when the child is gone.
    late: bool,
    /// Where its first byte is, counted from the child's first.
    begins: u64,
}

/// Why a child gets no more calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// A call took too long.
    TimedOut,
    /// It did not keep to the protocol; the last fault.
    Faults(String),
    /// It reads no more.
    Deaf,
    /// The handler is being stopped.
    Stopping,
}

/// What followed from a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// An answer.
    Answer,
    /// An answer that came after the call's time.
    Late,
    /// No answer: what is wrong with it.
    Fault(String),
}

/// The state of the conversation.
#[derive(Default)]
pub(super) struct Talk {
    /// Calls that are not encoded yet, in order.
    queue: VecDeque<Job>,
    /// Calls that are, by a number that grows.
    running: BTreeMap<u64, Running>,
    next_call: u64,
    /// Where the answer to an id goes: the call, and the event in it.
    events: HashMap<String, (u64, usize)>,
    deadlines: BTreeSet<(Instant, u64)>,
    out: Vec<u8>,
    /// Bytes of `out` that are written.
    written: usize,
    /// Bytes that were written before the first of `out`.
    before: u64,
    faults: u32,
    closed: Option<Closed>,
    /// Calls that are late.
    late: usize,
    freed: Freed,
}

/// What ended since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    /// Number of calls.
    pub(super) calls: usize,
    /// Their events.
    pub(super) keys: Vec<Key>,
}

impl Talk {
    /// Takes a call.
    pub(super) fn accept(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    /// Encodes waiting calls as far as there is room to write them; their time begins here.
    pub(super) fn encode(&mut self, now: Instant) {
        if self.written == self.out.len() {
            self.before += self.out.len() as u64;
            self.out.clear();
            self.written = 0;
            if self.out.capacity() > 4 * OUT_MAX {
                self.out.shrink_to(OUT_MAX);
            }
        }
        while self.closed.is_none()
            && self.out.len() < OUT_MAX
            && let Some(job) = self.queue.pop_front()
        {
            self.give(job, now);
        }
    }

    /// Bytes to be written.
    pub(super) fn out(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// The first `n` of these bytes were written.
    pub(super) fn wrote(&mut self, n: usize) {
        self.written += n;
    }

    fn give(&mut self, job: Job, now: Instant) {
        let may = job.call.go.now();
        if !may || job.reply.is_closed() {
            self.freed.calls += 1;
            self.freed.keys.extend(job.keys());
            // It waited here while its caller lost the right to make it: not an attempt.
            job.answer(&Verdict::Snooze { after: std::time::Duration::ZERO });
            return;
        }
        let number = self.next_call;
        self.next_call += 1;
        let deadline = turns::deadline(now, job.call.timeout);
        self.deadlines.insert((deadline, number));
        let begins = self.before + self.out.len() as u64;
        self.write(number, &job.call.events);
        let left = job.call.events.len();
        let running = Running { job, verdicts: vec![None; left], left, deadline, late: false, begins };
        self.running.insert(number, running);
    }

    /// Writes the lines of a call: one for a single event; for more, batches of at most [`LINE_MAX`].
    fn write(&mut self, number: u64, events: &[Event]) {
        let batch = events.len() > 1;
        let (mut begin, mut part) = (self.out.len(), 0_u32);
        for (index, event) in events.iter().enumerate() {
            let id = event.id();
            if batch && self.out.len() > begin && self.out.len() - begin + envelope::room(event) > LINE_MAX {
                self.out.extend_from_slice(b"]}\n");
                begin = self.out.len();
                part += 1;
            }
            let head = match (batch, self.out.len() > begin) {
                (false, _) => r#"{"event":"#.to_owned(),
                (true, true) => ",".to_owned(),
                (true, false) if part == 0 => format!(r#"{{"batch":"b{number}","events":["#),
                (true, false) => format!(r#"{{"batch":"b{number}.{part}","events":["#),
            };
            self.out.extend_from_slice(head.as_bytes());
            envelope::write(&mut self.out, event, &id);
            self.events.insert(id, (number, index));
        }
        self.out.extend_from_slice(if batch { b"]}\n" } else { b"}\n" });
    }

    /// Understands a line of the child.
    pub(super) fn hear(&mut self, line: &Line<'_>) -> Heard {
        let line = match line {
            Line::Whole(line) => line,
            Line::Cut(head) => {
                tracing::debug!(line = excerpt(head, 200), "a line that is too long");
                return self.fault(format!("a line of more than {LINE_MAX} bytes"));
            }
        };
        match answer::answer(line) {
            Ok((id, verdict)) => match self.settle(&id, verdict) {
                Some(heard) => heard,
                None => {
                    let id = excerpt(id.as_bytes(), 200);
                    self.fault(format!("an answer to {id:?}, which it does not have (any more)"))
                }
            },
            Err(Misspoken { id, reason }) => {
                // It says which event it is about: the call need not wait for its timeout.
                if let Some(id) = id {
                    self.settle(&id, Verdict::failed(format_args!("the handler's answer is not valid: {reason}")));
                }
                // It may hold a body, which is in no log above this level.
                tracing::debug!(line = excerpt(line, 200), "a line that is no answer");
                self.fault(format!("a line of {} bytes that is no answer: {reason}", line.len()))
            }
        }
    }

    fn fault(&mut self, what: String) -> Heard {
        self.faults += 1;
        if self.faults >= FAULTS_CLOSE && self.closed.is_none() {
            self.closed = Some(Closed::Faults(what.clone()));
        }
        Heard::Fault(what)
    }

    /// Takes the verdict of an event that is in flight.
    fn settle(&mut self, id: &str, verdict: Verdict) -> Option<Heard> {
        let (number, index) = self.events.remove(id)?;
        let running = self.running.get_mut(&number).expect("an event in flight belongs to a call in flight");
        if running.late {
            return Some(Heard::Late);
        }
        running.verdicts[index] = Some(verdict);
        running.left -= 1;
        if running.left == 0 {
            let running = self.running.remove(&number).expect("it was there a moment ago");
            self.deadlines.remove(&(running.deadline, number));
            self.finish(running, None);
        }
        Some(Heard::Answer)
    }

    /// Sends the verdicts of a call, with `missing` for the events that have none.
    fn finish(&mut self, running: Running, missing: Option<&Verdict>) {
        let Running { job, verdicts, .. } = running;
        self.freed.calls += 1;
        self.freed.keys.extend(job.keys());
        let verdicts = verdicts.into_iter().map(|verdict| {
            verdict.or_else(|| missing.cloned()).expect("a call ends with all its verdicts, or with one for the rest")
        });
        // When nobody waits any more, the answer is of no use.
        let _ = job.reply.send(verdicts.collect());
    }

    /// When the next call is late.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// When the last call is late that somebody still waits for.
    pub(super) fn awaited_until(&self) -> Option<Instant> {
        let awaited = self.deadlines.iter().rev().find(|(_, number)| !self.running[number].job.reply.is_closed());
        awaited.map(|(deadline, _)| *deadline)
    }

    /// Marks the calls whose time is over, and gives their number. The child gets nothing new after the first.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let before = self.late;
        while let Some(&(deadline, number)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.running.get_mut(&number).expect("a deadline belongs to a call in flight").late = true;
            self.late += 1;
        }
        if self.late > before && self.closed.is_none() {
            self.closed = Some(Closed::TimedOut);
        }
        self.late - before
    }

    /// The child gets no more calls from now on; what it has, it may finish.
    pub(super) fn close(&mut self, why: Closed) {
        self.closed.get_or_insert(why);
    }

    /// Why the child gets no more calls, when it is so.
    pub(super) fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Faults of protocol so far.
    pub(super) fn faults(&self) -> u32 {
        self.faults
    }

    /// Nothing is to be waited for any more: it is closed, and no call has time left.
    pub(super) fn over(&self) -> bool {
        self.closed.is_some() && self.running.len() == self.late
    }

    /// It is not worth waiting for.
    pub(super) fn babbles(&self) -> bool {
        self.faults >= FAULTS_KILL
    }

    /// Gives back the calls of which the child has not been given a byte.
    pub(super) fn take_back(&mut self) -> Vec<Job> {
        let given = self.before + self.written as u64;
        let unsent = match self.running.iter().find(|(_, running)| running.begins >= given) {
            Some((&number, running)) => {
                let end = usize::try_from(running.begins - self.before).expect("it begins within the bytes at hand");
                self.out.truncate(end);
                self.running.split_off(&number)
            }
            None => BTreeMap::new(),
        };
        let mut back = Vec::with_capacity(unsent.len() + self.queue.len());
        for (number, Running { job, deadline, late, .. }) in unsent {
            self.deadlines.remove(&(deadline, number));
            self.late -= usize::from(late);
            for event in &job.call.events {
                self.events.remove(&event.id());
            }
            back.push(job);
        }
        back.extend(self.queue.drain(..));
        back
    }

    /// What ended since this was last called.
    pub(super) fn take_freed(&mut self) -> Freed {
        std::mem::take(&mut self.freed)
    }

    /// The child has ended, and nothing more will come of it: answers the calls that it was given. `how` says how it
    /// ended.
    pub(super) fn end(&mut self, how: &str) {
        let alone = self.events.len() == 1;
        self.events.clear();
        self.deadlines.clear();
        self.late = 0;
        for running in std::mem::take(&mut self.running).into_values() {
            let missing = if running.late {
                let timeout = humantime::format_duration(running.job.call.timeout);
                Verdict::failed(format_args!("no answer within {timeout}"))
            } else if alone {
                Verdict::failed(how)
            } else {
                Verdict::Interrupted { error: how.to_owned() }
            };
            self.finish(running, Some(&missing));
        }
    }
}
