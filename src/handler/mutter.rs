//! What a process says on its standard error: it goes to the log, line by line, under the trigger and number of the process, as much
//! as a log can bear.

use super::lines::{Line, Lines, excerpt};
use crate::cell::Name;
use std::{convert::Infallible, time::Duration};
use tokio::{
    process::ChildStderr,
    time::{Instant, timeout},
};
use tracing::{info, warn};

/// Longest line that is logged, in bytes; the rest of it is not.
const LINE_MAX: usize = 2048;
/// Lines that are logged in one [`WINDOW`]; the others are counted.
const LINES_MAX: u32 = 200;
/// See [`LINES_MAX`].
const WINDOW: Duration = Duration::from_secs(1);

/// A process's standard error.
pub(super) struct Mutter {
    trigger: Name,
    /// Which of its children; a process of one call is none.
    child: Option<usize>,
    /// `None` after its end.
    pipe: Option<ChildStderr>,
    lines: Lines,
    /// The last line that had anything in it, and when it came.
    last: Option<(Instant, String)>,
    /// When the window began, and the lines in it.
    window: (Instant, u32),
    left_out: u64,
}

impl Mutter {
    pub(super) fn new(trigger: Name, child: Option<usize>, pipe: ChildStderr) -> Self {
        let window = (Instant::now(), 0);
        Self { trigger, child, pipe: Some(pipe), lines: Lines::new(LINE_MAX), last: None, window, left_out: 0 }
    }

    /// Logs what comes, for ever. Loses nothing when dropped.
    pub(super) async fn log(&mut self) -> Infallible {
        self.log_to_end().await;
        std::future::pending().await
    }

    async fn log_to_end(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            let more = self.lines.fill(pipe).await.is_ok_and(|n| n > 0);
            while let Some(line) = self.lines.next() {
                let (Line::Whole(line) | Line::Cut(line)) = line;
                let line = excerpt(line, LINE_MAX);
                self.say(line);
            }
            if !more {
                self.pipe = None;
                if let Some(Line::Whole(line) | Line::Cut(line)) = self.lines.rest() {
                    let line = excerpt(line, LINE_MAX);
                    self.say(line);
                }
                self.own_up();
            }
        }
    }

    /// Reads to the end, for at most `limit`, and gives the last line that had anything in it, unless it is older than
    /// `recent`.
    pub(super) async fn last_words(&mut self, limit: Duration, recent: Duration) -> Option<String> {
        let now = Instant::now();
        let _ = timeout(limit, self.log_to_end()).await;
        let (when, words) = self.last.take()?;
        (now.saturating_duration_since(when) <= recent).then_some(words)
    }

    fn say(&mut self, line: String) {
        if line.is_empty() {
            return;
        }
        if self.window.0.elapsed() >= WINDOW {
            self.own_up();
            self.window = (Instant::now(), 0);
        }
        self.window.1 += 1;
        if self.window.1 <= LINES_MAX {
            info!(target: "cellhook::handler::stderr", trigger = %self.trigger, child = self.child, "{line}");
        } else {
            self.left_out += 1;
        }
        self.last = Some((Instant::now(), line));
    }

    fn own_up(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            warn!(target: "cellhook::handler::stderr", trigger = %self.trigger, child = self.child, left_out, "lines came too fast for the log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn old_words_are_not_the_last_ones() {
        for (age, told) in [(0, Some("no such table")), (5, Some("no such table")), (6, None)] {
            let window = (Instant::now(), 0);
            let (trigger, lines) = (Name::new("t").unwrap(), Lines::new(LINE_MAX));
            let mut mutter = Mutter { trigger, child: Some(0), pipe: None, lines, last: None, window, left_out: 0 };
            mutter.say("no such table".to_owned());
            tokio::time::advance(Duration::from_secs(age)).await;
            let words = mutter.last_words(Duration::from_secs(1), Duration::from_secs(5)).await;
            assert_eq!(words.as_deref(), told, "after {age} s");
        }
    }
}
