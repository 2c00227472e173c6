//! `man`: the manual, a page for the program and one for each verb.

use super::{Cli, Context, exit::Done};
use anyhow::Context as _;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use serde::Serialize;
use std::{fs, path::PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write all pages into this directory, which is made if it is missing, in place of printing the first one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Args {
    pub(super) fn changes(&self) -> bool {
        self.dir.is_some()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    page: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

/// A page: its name, as `cellhook-put.1`, and its text.
type Page = (String, String);

pub(super) fn man(context: &mut Context, Args { dir }: Args) -> anyhow::Result<Done> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = dir else {
        let (page, text) = page(&command)?;
        if context.output.is_json() {
            context.output.object(&Line { page: &page, path: None, text: Some(&text) })?;
        } else {
            context.output.text(text.trim_end())?;
        }
        return Ok(Done::All);
    };
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    for (page, text) in &pages {
        let path = dir.join(page);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        if context.output.is_json() {
            context.output.object(&Line { page, path: Some(path), text: None })?;
        }
    }
    context.output.say(format_args!("{} pages in {}", pages.len(), dir.display()));
    Ok(Done::All)
}

/// The page of a command and those of its verbs.
fn collect(command: &Command, pages: &mut Vec<Page>) -> anyhow::Result<()> {
    pages.push(page(command)?);
    command.get_subcommands().filter(|verb| !verb.is_hide_set()).try_for_each(|verb| collect(verb, pages))
}

fn page(command: &Command) -> anyhow::Result<Page> {
    // A verb has no version of its own, and the page's foot would show none.
    let page = Man::new(command.clone()).source(concat!("cellhook ", env!("CARGO_PKG_VERSION"))).manual("cellhook");
    let mut text = Vec::new();
    page.render(&mut text)?;
    // A date that is left out is left out without quotes, and the rest of the title moves up. A build has no date.
    let text = String::from_utf8(text)?.replacen(" 1  \"", " 1 \"\" \"", 1);
    Ok((page.get_filename(), text))
}
