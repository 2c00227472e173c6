//! `completions`: what a shell needs to complete this command line.

use super::{Cli, Context, exit::Done};
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell that reads it.
    shell: Shell,
}

#[derive(Serialize)]
struct Line {
    shell: String,
    script: String,
}

pub(super) fn completions(context: &mut Context, Args { shell }: Args) -> anyhow::Result<Done> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "cellhook", &mut script);
    let script = String::from_utf8(script)?;
    if context.output.is_json() {
        context.output.object(&Line { shell: shell.to_string(), script })?;
    } else {
        context.output.text(script.trim_end())?;
    }
    Ok(Done::All)
}
