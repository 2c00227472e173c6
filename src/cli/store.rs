//! `init` and `check`: the tables, and the config.

use super::{
    Exit,
    home::{Home, print_line},
};
use crate::cell::NewDatastore;
use std::io::Write as _;

/// Makes what is missing, and says what there was.
pub(super) async fn init(home: &Home) -> anyhow::Result<Exit> {
    let store = home.store().await?;
    print_line(format_args!("{}", store.describe()))?;
    for (name, datastore) in &home.config.datastores {
        let made = store.init_datastore(&NewDatastore { name: name.clone(), shards: datastore.shards }).await?;
        let (shards, incarnation) = (made.datastore.shards, &made.datastore.incarnation);
        let what = if made.new { "made" } else { "exists" };
        print_line(format_args!(
            "datastore {name}: {what}, {shards} shards, incarnation {incarnation}{}",
            list(&made.tables)
        ))?;
    }
    let tables = store.init_group(&home.config.group).await?;
    let what = if tables.is_empty() { "exists" } else { "made" };
    print_line(format_args!("group {}: {what}{}", home.config.group, list(&tables)))?;
    Ok(Exit::Done)
}

fn list(tables: &[String]) -> String {
    if tables.is_empty() { String::new() } else { format!("; new tables: {}", tables.join(", ")) }
}

/// The config was loaded and checked; prints what it comes to.
pub(super) fn check(home: &Home) -> Exit {
    eprintln!("{} is good; with the environment it comes to:", home.config.file.display());
    // A reader that closed the pipe has seen enough.
    let _ = std::io::stdout().write_all(home.config.effective().as_bytes());
    Exit::Done
}
