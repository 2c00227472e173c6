//! The carrier `command`: one process per event, its exit code is the verdict.

use super::{
    answer::bounded,
    envelope,
    group::Program,
    lines::{Line, Lines, excerpt},
    mutter::Mutter,
    turns::one_by_one,
};
use crate::cell::{Call, Event, Handler, Name, Verdict};
use futures_util::future::BoxFuture;
use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    process::{ChildStdin, ChildStdout},
    time::{Instant, timeout_at},
};
use tracing::debug;

/// How long an event rests after exit code 75.
const SNOOZE: Duration = Duration::from_secs(30);
/// How long an ended process's pipes are read to their end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest line of standard output that is logged, in bytes.
const LINE_MAX: usize = 2048;
/// Lines of standard output that are logged of one process.
const LINES_MAX: usize = 100;

/// A handler that starts a process for each event.
pub struct Command {
    trigger: Name,
    program: Program,
}

impl Command {
    pub(super) fn new(trigger: &Name, program: Program) -> Self {
        Self { trigger: trigger.clone(), program }
    }

    /// Runs the program for one event.
    async fn run(&self, event: &Event, until: Instant, limit: Duration) -> Verdict {
        let key = &event.cell.key;
        for (name, text) in [("row_key", &key.row_key), ("column", &key.column)] {
            if text.contains('\0') {
                let error = format!("the {name} contains a zero byte, which no environment variable can hold");
                return Verdict::DeadLetter { error };
            }
        }
        let id = event.id();
        let mut envelope = Vec::new();
        envelope::write(&mut envelope, event, &id);
        envelope.push(b'\n');
        let (mut group, pipes) = match self.program.start(&variables(event, id)) {
            Ok(started) => started,
            Err(error) => {
                let blame = self.program.blame(&error);
                // What a shell would say with 127 and 126: no retry will help.
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Verdict::Pause { error: blame },
                    _ => Verdict::failed(blame),
                };
            }
        };
        let mut mutter = Mutter::new(self.trigger.clone(), None, pipes.stderr);
        let work = async {
            tokio::select! {
                biased;
                status = group.ended() => status,
                never = feed_and_log(&self.trigger, pipes.stdin, &envelope, pipes.stdout) => match never {},
                never = mutter.log() => match never {},
            }
        };
        let Ok(status) = timeout_at(until, work).await else {
            group.kill();
            let reaped = group.ended().await;
            debug!(trigger = %self.trigger, ?reaped, "process killed after the call's time");
            return Verdict::failed(format_args!("no end within {}", humantime::format_duration(limit)));
        };
        // All that it said was about this event.
        let words = mutter.last_words(LAST_WORDS, Duration::MAX).await;
        match status {
            Ok(status) => verdict(status, words),
            Err(error) => Verdict::failed(format_args!("the process cannot be waited for: {error}")),
        }
    }
}

impl Handler for Command {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(async move {
            let (limit, this) = (call.timeout, &self);
            one_by_one(call, |event, until| async move { this.run(&event, until, limit).await }).await
        })
    }
}

/// What the process finds in its environment, besides what the config gives it.
pub(super) fn variables(event: &Event, id: String) -> [(&'static str, String); 10] {
    let Event { cell, datastore, trigger, attempt, epoch, .. } = event;
    [
        ("CELLHOOK_EVENT_ID", id),
        ("CELLHOOK_TRIGGER", trigger.to_string()),
        ("CELLHOOK_DATASTORE", datastore.name.to_string()),
        ("CELLHOOK_ROW_KEY", cell.key.row_key.to_string()),
        ("CELLHOOK_COLUMN", cell.key.column.to_string()),
        ("CELLHOOK_REF_KEY", cell.key.ref_key.to_string()),
        ("CELLHOOK_ADDED_ID", cell.added_id.to_string()),
        ("CELLHOOK_SHARD", cell.shard.to_string()),
        ("CELLHOOK_ATTEMPT", attempt.to_string()),
        ("CELLHOOK_EPOCH", epoch.to_string()),
    ]
}

/// Gives the process its event, and logs what it prints.
async fn feed_and_log(
    trigger: &Name,
    mut stdin: ChildStdin,
    envelope: &[u8],
    mut stdout: ChildStdout,
) -> std::convert::Infallible {
    let feed = async move {
        // A process need not read its event.
        let _ = stdin.write_all(envelope).await;
    };
    let log = async {
        let mut lines = Lines::new(LINE_MAX);
        let mut logged = 0;
        while lines.fill(&mut stdout).await.is_ok_and(|n| n > 0) {
            while let Some(line) = lines.next() {
                logged += 1;
                if logged <= LINES_MAX {
                    let (Line::Whole(line) | Line::Cut(line)) = line;
                    debug!(target: "cellhook::handler::stdout", %trigger, "{}", excerpt(line, LINE_MAX));
                }
            }
        }
    };
    futures_util::future::join(feed, log).await;
    std::future::pending().await
}

/// The exit code is the verdict; the numbers are those of `sysexits.h` and of shells.
pub(super) fn verdict(status: ExitStatus, words: Option<String>) -> Verdict {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    let error = bounded(match words {
        Some(words) => format!("{how}: {words}"),
        None => how,
    });
    match status.code() {
        Some(0) => Verdict::done(),
        Some(75) => Verdict::Snooze { after: SNOOZE },
        Some(65) => Verdict::DeadLetter { error },
        Some(78 | 126 | 127) => Verdict::Pause { error },
        _ => Verdict::Failed { error, retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_verdicts() {
        let of = |code: i32| verdict(ExitStatus::from_raw(code << 8), Some("words".to_owned()));
        assert_eq!(of(0), Verdict::done());
        assert_eq!(of(75), Verdict::Snooze { after: SNOOZE });
        assert_eq!(of(65), Verdict::DeadLetter { error: "exit code 65: words".to_owned() });
        for code in [78, 126, 127] {
            assert_eq!(of(code), Verdict::Pause { error: format!("exit code {code}: words") });
        }
        for code in [1, 2, 64, 77, 255] {
            assert_eq!(of(code), Verdict::failed(format_args!("exit code {code}: words")));
        }
        assert_eq!(verdict(ExitStatus::from_raw(9), None), Verdict::failed("killed by signal 9"));
    }
}
