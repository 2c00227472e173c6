//! A program of the user: how it is started, and the process group that it leads.
//!
//! Every process starts in a group of its own, so that what it starts is killed with it. The environment is empty but
//! for what the config passes, so that neither secrets nor settings of the daemon reach it by accident.

use rustix::process::{Pid, Signal, kill_process_group};
use std::{collections::BTreeMap, ffi::OsString, io, path::PathBuf, process::ExitStatus, process::Stdio};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// What is started, and with what around it.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The program and its arguments; no shell is between.
    pub(super) command: Vec<String>,
    /// Working directory; the daemon's if there is none.
    pub(super) dir: Option<PathBuf>,
    /// Set in its environment.
    pub(super) env: BTreeMap<String, String>,
    /// Names of variables that it gets from the daemon's environment, where they are set.
    pub(super) env_pass: Vec<String>,
}

impl Program {
    /// Starts the program with pipes for all three streams.
    ///
    /// # Errors
    /// The system's, when there is no such program, or no right to run it, or no room for it.
    pub(super) fn start(&self, more: &[(&str, String)]) -> io::Result<(Group, Pipes)> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
        let passed = self.env_pass.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(passed.collect::<BTreeMap<&String, OsString>>())
            .envs(&self.env)
            .envs(more.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let mut leader = command.spawn()?;
        let missing = || io::Error::other("a pipe is missing");
        let pipes = Pipes {
            stdin: leader.stdin.take().ok_or_else(missing)?,
            stdout: leader.stdout.take().ok_or_else(missing)?,
            stderr: leader.stderr.take().ok_or_else(missing)?,
        };
        // A process group is known by the id of its leader.
        let id = leader.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        Ok((Group { leader, id }, pipes))
    }

    /// The error of [`Program::start`] for a person.
    pub(super) fn blame(&self, error: &io::Error) -> String {
        let program = self.command.first().map_or("", String::as_str);
        match &self.dir {
            // The same error comes when the directory is missing.
            Some(dir) => format!("cannot start {program:?} in {}: {error}", dir.display()),
            None => format!("cannot start {program:?}: {error}"),
        }
    }
}

/// The daemon's ends of the pipes.
pub(super) struct Pipes {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

/// A process and its group. Dropping it kills the group.
pub(super) struct Group {
    leader: Child,
    /// `None` after the leader was reaped.
    id: Option<Pid>,
}

impl Group {
    /// Waits until the leader has ended, and ends what it leaves behind. Loses nothing when dropped.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = self.leader.wait().await?;
        // The group's number is not in use again while a process of it is left, and the kernel hands out numbers in
        // turn, so just after the last one ended it is nobody's. Later it may be anybody's.
        self.kill();
        self.id = None;
        Ok(status)
    }

    /// Asks all processes of the group to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends all processes of the group.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.id {
            // The only error that can come says that the group is gone already.
            let _ = kill_process_group(id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
