//! What cannot be undone is asked about first, in one way.

use super::{exit::Usage, output::Output};
use std::io::{self, IsTerminal, Write};

/// Whether a change is only told, or made without a question.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Ask {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do it without asking.
    #[arg(long)]
    pub(super) yes: bool,
}

impl Ask {
    /// What was said by the command line itself is done.
    pub(super) const SAID: Self = Self { dry_run: false, yes: true };

    /// Asks a person whether to go on, unless `--yes` says so; a script has to say it. A "no" is the error.
    pub(super) fn agreed(self, output: &mut Output, question: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Usage(format!("{question} Nobody can answer here: say --yes, or --dry-run to see it")).into());
        }
        output.flush()?;
        // On a terminal nobody else's end can be closed.
        let _ = write!(io::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Usage("nothing was done".into()).into()),
        }
    }
}
