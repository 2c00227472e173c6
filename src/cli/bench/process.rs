//! Processes of this very program, as a user starts them.

use super::place::Place;
use crate::{
    cell::Name,
    config::{Config, Datastore, Paces},
    dispatch, lease,
    process::LogConfig,
    store::Kind,
};
use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
    time::{Instant, sleep, timeout},
};

/// Longest time that anything may take that should happen soon.
pub(super) const LONGEST: Duration = Duration::from_mins(10);
/// How often it is looked whether something has happened that takes seconds.
const LOOK: Duration = Duration::from_millis(10);

/// A process; killed and waited for when dropped.
pub(super) struct Process(Child);

/// What it prints, line by line.
pub(super) struct Printed(Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>);

impl Process {
    /// Starts `cellhook` with these words. Its stderr is read instead of its stdout with `talk`.
    pub(super) fn start<W: AsRef<OsStr>>(
        words: impl IntoIterator<Item = W>,
        talk: bool,
    ) -> anyhow::Result<(Self, Printed)> {
        let mut command = Command::new(std::env::current_exe()?);
        // Without what the user's environment would override.
        command.args(words).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.stdin(Stdio::piped());
        let (stdout, stderr) = if talk { (Stdio::null(), Stdio::piped()) } else { (Stdio::piped(), Stdio::null()) };
        let mut process = Self(command.stdout(stdout).stderr(stderr).spawn().context("cellhook cannot be started")?);
        let child = &mut process.0;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let printed: Box<dyn AsyncRead + Send + Unpin> = match (stdout, stderr) {
            (Some(stdout), _) => Box::new(tokio::process::ChildStdout::from_std(stdout)?),
            (None, Some(stderr)) => Box::new(tokio::process::ChildStderr::from_std(stderr)?),
            (None, None) => unreachable!("one of them is a pipe"),
        };
        Ok((process, Printed(BufReader::new(printed).lines())))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.0), signal).context("a process of the bench has ended")
    }

    /// Asks it to leave, and waits until it has.
    pub(super) async fn leave(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "a worker left with {status}");
        Ok(())
    }

    /// Waits for its end. A role ends when its stdin does.
    pub(super) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        drop(self.0.stdin.take());
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < LONGEST, "a process of the bench does not end");
            sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Printed {
    /// The next line.
    pub(super) async fn next(&mut self) -> anyhow::Result<String> {
        let line = timeout(LONGEST, self.0.next_line()).await.context("a process of the bench says nothing")??;
        line.context("a process of the bench ended before its time")
    }
}

/// Looks again and again until it is so.
pub(super) async fn until(what: &str, mut so: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !so().await? {
        ensure!(start.elapsed() < LONGEST, "{what} took longer than {LONGEST:?}");
        sleep(LOOK).await;
    }
    Ok(())
}

/// A config for a worker over the store of a bench, with one trigger, which has the name of its datastore.
pub(super) struct WorkerConfig<'a> {
    pub(super) group: &'a Name,
    pub(super) datastore: &'a crate::cell::Datastore,
    pub(super) trigger: dispatch::Config,
    pub(super) session: Duration,
    /// Of its log.
    pub(super) level: &'static str,
}

impl WorkerConfig<'_> {
    /// Writes the file and starts `cellhook run` with it.
    pub(super) fn run(self, place: &Place) -> anyhow::Result<(Process, Printed)> {
        let file = place.dir().join(format!("{}.toml", self.group));
        let lease = lease(self.session);
        let paces = Paces::of(Kind::Embedded, lease.heartbeat);
        let name = self.datastore.name.clone();
        let config = Config {
            per_shard: false,
            file: file.clone(),
            group: self.group.clone(),
            store: Place::config(place.dir()),
            datastores: BTreeMap::from([(name.clone(), Datastore { shards: self.datastore.shards, retention: None })]),
            lease,
            memory: dispatch::MEMORY,
            checkpoint_interval: paces.checkpoint,
            poll: paces.poll,
            metrics: None,
            log: LogConfig { level: self.level.into(), ..LogConfig::default() },
            triggers: BTreeMap::from([(name, self.trigger)]),
        };
        std::fs::write(&file, config.effective())?;
        Process::start([Path::new("run"), Path::new("--config"), &file], true)
    }
}

/// Times of a worker's session: the defaults, in proportion to its length.
pub(super) fn lease(session: Duration) -> lease::Config {
    let usual = lease::Config::default();
    let part = session.div_duration_f64(usual.session);
    // No config may have a longer one.
    let heartbeat = usual.heartbeat.mul_f64(part).min(Duration::from_mins(1));
    let paces = Paces::of(Kind::Embedded, heartbeat);
    lease::Config { session, heartbeat, membership: paces.membership, ..usual }
}
