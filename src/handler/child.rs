//! One place for a child, and the lives of the children that take it: start, ready line, conversation, end, rest.

use super::{
    answer,
    group::{Group, Program},
    lines::{Lines, excerpt},
    mutter::Mutter,
    talk::{Closed, Freed, Heard, Job, LINE_MAX, Talk},
};
use crate::{cell::Name, metrics};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::ChildStdout,
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// How long a child may take to its ready line.
const READY: Duration = Duration::from_secs(10);
/// Rest before a child is started again: this at first, then twice as long each time.
const REST_MIN: Duration = Duration::from_millis(100);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(10);
/// A child that was up for so long makes the rest short again.
const STEADY: Duration = Duration::from_secs(10);
/// How long an ended child's pipes are read to their end, and a child that closed its output may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a child said on standard error longer ago has nothing to do with its end.
const RECENT: Duration = Duration::from_secs(5);
/// From closed input to TERM, for a child that has no call to finish that anybody waits for.
const STOP: Duration = Duration::from_secs(5);
/// From TERM to KILL.
const TERM: Duration = Duration::from_secs(5);
/// Faults of a child that are logged one by one.
const FAULTS_LOGGED: u32 = 10;

/// What a place tells the pool.
pub(super) enum Notice {
    /// A child is ready.
    Up {
        /// Its place.
        seat: usize,
        /// How many calls it takes.
        concurrency: usize,
        /// Where they go.
        jobs: mpsc::Sender<Job>,
    },
    /// Calls were answered.
    Freed {
        /// Its place.
        seat: usize,
        /// What has ended.
        freed: Freed,
    },
    /// It gets no more calls.
    Closed {
        /// Its place.
        seat: usize,
        /// Calls that it was not given.
        back: Vec<Job>,
    },
    /// It ended, or could not be started.
    Down {
        /// Its place.
        seat: usize,
        /// Why.
        why: String,
        /// Calls that it was not given.
        back: Vec<Job>,
    },
}

/// What happened to the children of a handler since it was made.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) starts: AtomicU64,
    pub(super) failed_starts: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) timeouts: AtomicU64,
}

/// A place for a child.
pub(super) struct Seat {
    pub(super) trigger: Name,
    /// Of the children of the trigger.
    pub(super) index: usize,
    pub(super) program: Arc<Program>,
    pub(super) pool: mpsc::Sender<Notice>,
    pub(super) stop: CancellationToken,
    pub(super) tally: Arc<Tally>,
}

/// How a life ended.
struct End {
    why: String,
    back: Vec<Job>,
    /// When it became ready.
    up: Option<Instant>,
}

/// Why a conversation ended.
enum Over {
    /// The process ended by itself.
    Ended,
    /// It closed its output, so that no answer can come.
    Mute,
    /// It is to be killed.
    Kill(&'static str),
}

impl Seat {
    /// Keeps a child in this place until the handler is stopped.
    pub(super) async fn run(self) {
        let mut rest = REST_MIN;
        loop {
            let End { why, back, up } = self.live().await;
            let stopping = self.stop.is_cancelled();
            if up.is_some_and(|up| up.elapsed() >= STEADY) {
                rest = REST_MIN;
            }
            match (stopping, up) {
                (true, _) => debug!(trigger = %self.trigger, child = self.index, why, "child ended"),
                (false, Some(_)) => {
                    metrics::child_ended(self.trigger.as_str(), "ended");
                    warn!(trigger = %self.trigger, child = self.index, why, ?rest, "child ended; another is started after a rest")
                }
                (false, None) => {
                    metrics::child_ended(self.trigger.as_str(), "not_started");
                    self.tally.failed_starts.fetch_add(1, Ordering::Relaxed);
                    error!(trigger = %self.trigger, child = self.index, why, ?rest, "child could not be started; tried again after a rest");
                }
            }
            let why = if up.is_some() {
                format!("no child is up: {why}")
            } else {
                format!("child could not be started: {why}")
            };
            if self.pool.send(Notice::Down { seat: self.index, why, back }).await.is_err() || stopping {
                return;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep(rest) => rest = (rest * 2).min(REST_MAX),
            }
        }
    }

    async fn live(&self) -> End {
        let never = |why| End { why, back: Vec::new(), up: None };
        self.tally.starts.fetch_add(1, Ordering::Relaxed);
        let (mut group, pipes) = match self.program.start(&[]) {
            Ok(started) => started,
            Err(error) => return never(self.program.blame(&error)),
        };
        let mut mutter = Mutter::new(self.trigger.clone(), Some(self.index), pipes.stderr);
        let (mut stdin, mut stdout) = (Some(pipes.stdin), pipes.stdout);
        let mut lines = Lines::new(LINE_MAX);

        let hello = tokio::select! {
            biased;
            hello = self.hello(&mut group, &mut stdout, &mut lines) => hello,
            never = mutter.log() => match never {},
        };
        let concurrency = match hello {
            Ok(concurrency) => concurrency,
            Err(refused) => {
                let how = self.bury(&mut group, &mut mutter, refused.is_none()).await;
                return never(refused.unwrap_or_else(|| format!("it ended before it was ready: {how}")));
            }
        };
        let up = Instant::now();
        info!(trigger = %self.trigger, child = self.index, concurrency, "child is ready");
        // The pool gives a child as many calls as it takes, so there is always room.
        let (sender, mut jobs) = mpsc::channel(concurrency);
        let notice = Notice::Up { seat: self.index, concurrency, jobs: sender };
        if self.pool.send(notice).await.is_err() {
            return End { why: "the handler is gone".to_owned(), back: Vec::new(), up: Some(up) };
        }

        let mut talk = Talk::default();
        let over = tokio::select! {
            biased;
            over = self.converse(&mut talk, &mut group, &mut jobs, &mut stdin, &mut stdout, &mut lines) => over,
            never = mutter.log() => match never {},
        };
        drop(stdin);
        let how = match over {
            Over::Ended | Over::Mute => self.bury(&mut group, &mut mutter, true).await,
            Over::Kill(why) => {
                self.bury(&mut group, &mut mutter, false).await;
                match talk.closed() {
                    Some(Closed::Faults(fault)) => format!("{why}: {fault}"),
                    _ => why.to_owned(),
                }
            }
        };
        // What it wrote before it ended counts.
        let drain = async {
            while lines.fill(&mut stdout).await.is_ok_and(|n| n > 0) {
                self.hear(&mut talk, &mut lines);
            }
        };
        // A process that left the group may still hold the pipe.
        let _ = timeout(LAST_WORDS, drain).await;
        let mut back = talk.take_back();
        back.extend(take_rest(&mut jobs));
        talk.end(&format!("the handler's process ended: {how}"));
        self.tell_freed(&mut talk).await;
        End { why: how, back, up: Some(up) }
    }

    /// Waits for the ready line, and gives the child's concurrency. `Err(None)`: the child ended, or is about to.
    async fn hello(
        &self,
        group: &mut Group,
        stdout: &mut ChildStdout,
        lines: &mut Lines,
    ) -> Result<usize, Option<String>> {
        let mut late = pin!(sleep(READY));
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Some("the handler is being stopped".to_owned())),
                () = &mut late => return Err(Some(format!("no ready line within {} s", READY.as_secs()))),
                read = lines.fill(stdout) => {
                    if !read.is_ok_and(|n| n > 0) {
                        return Err(None);
                    }
                    match lines.next() {
                        Some(super::lines::Line::Whole(line)) => return answer::ready(line).map_err(Some),
                        Some(super::lines::Line::Cut(head)) => {
                            return Err(Some(format!("its first line is too long; it begins {:?}", excerpt(head, 200))));
                        }
                        None => {}
                    }
                }
                _ = group.ended() => return Err(None),
            }
        }
    }

    /// Gives calls to the child and takes its answers, until it ends or has to.
    async fn converse(
        &self,
        talk: &mut Talk,
        group: &mut Group,
        jobs: &mut mpsc::Receiver<Job>,
        stdin: &mut Option<tokio::process::ChildStdin>,
        stdout: &mut ChildStdout,
        lines: &mut Lines,
    ) -> Over {
        let mut stopped = pin!(self.stop.cancelled());
        // When it gets TERM, and after that KILL.
        let mut stop_at: Option<Instant> = None;
        let mut terminated = false;
        let mut told = false;
        let mut alarm = pin!(sleep_until(Instant::now() + READY));
        // It may have said more than its ready line.
        self.hear(talk, lines);
        loop {
            let now = Instant::now();
            talk.encode(now);
            self.tell_freed(talk).await;
            if let Some(closed) = talk.closed()
                && !told
            {
                told = true;
                if *closed != Closed::Stopping {
                    warn!(trigger = %self.trigger, child = self.index, why = ?closed, "child gets no more calls, and is killed after those that it has");
                }
                let mut back = talk.take_back();
                back.extend(take_rest(jobs));
                if self.pool.send(Notice::Closed { seat: self.index, back }).await.is_err() {
                    return Over::Kill("it was killed: the handler is gone");
                }
            }
            if talk.babbles() {
                return Over::Kill("it was killed: it does not keep to the protocol");
            }
            if talk.over() && stop_at.is_none() {
                return Over::Kill(match talk.closed() {
                    Some(Closed::Faults(_)) => "it was killed: it does not keep to the protocol",
                    Some(Closed::Deaf) => "it was killed: it closed its input",
                    _ => "it was killed: a call took longer than its timeout",
                });
            }
            if stop_at.is_some() && talk.out().is_empty() {
                *stdin = None;
            }
            if let Some(next) = [talk.deadline(), stop_at].into_iter().flatten().min()
                && next < alarm.deadline()
            {
                alarm.as_mut().reset(next);
            }
            let out = talk.out();
            let write = async {
                match stdin {
                    Some(stdin) => stdin.write(out).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stopped, if stop_at.is_none() => {
                    // The daemon may have given up on some of the calls: they hold up nothing.
                    stop_at = Some(talk.awaited_until().unwrap_or(now).max(now + STOP));
                    talk.close(Closed::Stopping);
                }
                () = &mut alarm => {
                    let now = Instant::now();
                    let late = talk.expire(now) as u64;
                    self.tally.timeouts.fetch_add(late, Ordering::Relaxed);
                    if stop_at.is_some_and(|at| at <= now) {
                        if terminated {
                            return Over::Kill("it was killed: it did not end when it was stopped");
                        }
                        group.terminate();
                        terminated = true;
                        stop_at = Some(now + TERM);
                    }
                    alarm.as_mut().reset(now + READY);
                }
                _ = group.ended() => return Over::Ended,
                Some(job) = jobs.recv(), if !told => talk.accept(job),
                wrote = write, if !out.is_empty() => match wrote {
                    Ok(n) => talk.wrote(n),
                    Err(error) => {
                        debug!(trigger = %self.trigger, child = self.index, %error, "child reads no more");
                        *stdin = None;
                        talk.close(Closed::Deaf);
                    }
                },
                read = lines.fill(stdout) => {
                    if !read.is_ok_and(|n| n > 0) {
                        return Over::Mute;
                    }
                    self.hear(talk, lines);
                }
            }
        }
    }

    /// Understands the lines that have come.
    fn hear(&self, talk: &mut Talk, lines: &mut Lines) {
        while let Some(line) = lines.next() {
            match talk.hear(&line) {
                Heard::Answer => {}
                Heard::Late => {
                    debug!(trigger = %self.trigger, child = self.index, "an answer came after the call's time")
                }
                Heard::Fault(what) => {
                    metrics::protocol_fault(self.trigger.as_str());
                    self.tally.faults.fetch_add(1, Ordering::Relaxed);
                    if talk.faults() <= FAULTS_LOGGED {
                        warn!(trigger = %self.trigger, child = self.index, fault = talk.faults(), what, "child does not keep to the protocol");
                    }
                }
            }
        }
    }

    async fn tell_freed(&self, talk: &mut Talk) {
        let freed = talk.take_freed();
        if freed.calls > 0 {
            // The pool lives as long as a child; when the handler is dropped, nobody counts any more.
            let _ = self.pool.send(Notice::Freed { seat: self.index, freed }).await;
        }
    }

    /// Sees a child off, and tells how it ended. With `wait`, it may take a moment to end by itself.
    async fn bury(&self, group: &mut Group, mutter: &mut Mutter, wait: bool) -> String {
        let end = async {
            if wait && let Ok(status) = timeout(LAST_WORDS, group.ended()).await {
                return status;
            }
            group.kill();
            group.ended().await
        };
        let status = tokio::select! {
            biased;
            status = end => status,
            never = mutter.log() => match never {},
        };
        let words = mutter.last_words(LAST_WORDS, RECENT).await;
        match (status, words) {
            (Ok(status), None) => status.to_string(),
            (Ok(status), Some(words)) => format!("{status}, after the words: {words}"),
            (Err(error), _) => format!("it cannot be waited for: {error}"),
        }
    }
}

/// Closes the queue of a child, and gives what is in it.
fn take_rest(jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    jobs.close();
    std::iter::from_fn(|| jobs.try_recv().ok()).collect()
}
