//! `init`: makes what is missing.

use super::{Context, exit::Done, open::Open, output::say};
use crate::{
    cell::{Name, NewDatastore},
    config::Config,
    store::{OpenError, Store},
};
use serde::Serialize;

/// What `init` found or made of a datastore.
#[derive(Serialize)]
struct DatastoreLine<'a> {
    datastore: &'a Name,
    shards: u32,
    incarnation: &'a str,
    new: bool,
    tables: &'a [String],
}

/// What `init` found or made of a group.
#[derive(Serialize)]
struct GroupLine<'a> {
    group: &'a Name,
    new: bool,
    tables: &'a [String],
}

pub(super) async fn init(context: &mut Context) -> anyhow::Result<Done> {
    let Open { config, store } = Open::new(context).await?;
    say(store.describe());
    let mut made_any = false;
    for (name, datastore) in &config.datastores {
        let made = store.init_datastore(&NewDatastore { name: name.clone(), shards: datastore.shards }).await?;
        made_any |= made.new || !made.tables.is_empty();
        let incarnation = made.datastore.incarnation.as_str();
        let (shards, new, tables) = (made.datastore.shards, made.new, made.tables.as_slice());
        let line = DatastoreLine { datastore: name, shards, incarnation, new, tables };
        if context.output.is_json() {
            context.output.object(&line)?;
        } else {
            let state = if new { "made" } else { "is there" };
            context.output.text(&format!("datastore {name}: {state}, {shards} shards{}", list(tables)))?;
        }
    }
    let tables = store.init_group(&config.group).await?;
    made_any |= !tables.is_empty();
    if context.output.is_json() {
        context.output.object(&GroupLine { group: &config.group, new: !tables.is_empty(), tables: &tables })?;
    } else {
        let state = if tables.is_empty() { "is there" } else { "made" };
        context.output.text(&format!("group {}: {state}{}", config.group, list(&tables)))?;
    }
    if !made_any {
        say("nothing was missing");
    }
    Ok(Done::All)
}

fn list(tables: &[String]) -> String {
    if tables.is_empty() { String::new() } else { format!("; new tables: {}", tables.join(", ")) }
}

/// Makes everything that is missing, without a word: for a first run on the embedded store.
pub(super) async fn make_all(config: &Config, store: &Store) -> Result<(), OpenError> {
    for (name, datastore) in &config.datastores {
        store.init_datastore(&NewDatastore { name: name.clone(), shards: datastore.shards }).await?;
    }
    store.init_group(&config.group).await?;
    Ok(())
}
