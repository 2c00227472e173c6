//! What every verb begins with: the config, the store, and what an error means for the exit code.

use super::Exit;
use crate::{
    cell::{Datastore, ErrorKind, Ledger, Name, Session, SessionState, StoreError},
    config::{Config, ConfigError, Environment, load},
    store::{Cells, OpenError, PutError, Store},
    tail::TailError,
};
use anyhow::Context as _;
use std::{io, path::PathBuf, sync::Arc};

/// The config, and where it came from.
pub(super) struct Home {
    pub(super) path: Option<PathBuf>,
    pub(super) config: Config,
}

/// Something that was asked for by name is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotThere(pub(super) String);

impl Home {
    pub(super) fn load(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let config = load(path.as_deref(), &Environment::of_process())?;
        Ok(Self { path, config })
    }

    /// The config as the file has it now.
    pub(super) fn again(&self) -> Result<Config, ConfigError> {
        load(self.path.as_deref(), &Environment::of_process())
    }

    pub(super) async fn store(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.config.store).await?)
    }

    /// A datastore of the config.
    pub(super) async fn cells(&self, store: &Store, name: &Name) -> anyhow::Result<Cells> {
        let Some(datastore) = self.config.datastores.get(name) else {
            let known: Vec<&str> = self.config.datastores.keys().map(Name::as_str).collect();
            let file = self.config.file.display();
            return Err(NotThere(format!("no datastore {name} in {file}; there is {}", known.join(", "))).into());
        };
        Ok(Cells::new(store.datastore(name, Some(datastore.shards)).await?))
    }

    pub(super) async fn ledger(&self, store: &Store) -> anyhow::Result<Arc<dyn Ledger>> {
        Ok(store.ledger(&self.config.group).await?)
    }
}

/// A datastore's name as an argument, or all of the config's.
pub(super) fn chosen<'a>(home: &'a Home, name: Option<&'a Name>) -> Vec<&'a Name> {
    name.map_or_else(|| home.config.datastores.keys().collect(), |name| vec![name])
}

/// Tells all live sessions to look again. A hint: a worker that misses it looks within a minute.
pub(super) async fn nudge_all(ledger: &dyn Ledger) -> anyhow::Result<()> {
    let live = |session: &Session| session.state == SessionState::Live;
    for session in ledger.sessions().await?.into_iter().filter(live) {
        ledger.nudge(&session.id).await?;
    }
    Ok(())
}

/// One line of standard output. A reader that closed the pipe ends the program without a word, see [`exit_of`].
pub(super) fn print_line(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    use io::Write as _;
    writeln!(io::stdout().lock(), "{line}").context("standard output")
}

/// One JSON object as a line of standard output.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    use io::Write as _;
    let mut line = serde_json::to_vec(value).context("a line of output")?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line).context("standard output")
}

/// The shard count of a datastore and its buckets, for reading all tips.
pub(super) async fn tips(cells: &Cells) -> Result<Vec<crate::cell::Tip>, StoreError> {
    let datastore: &Datastore = cells.datastore();
    let mut tips = Vec::new();
    for bucket in 0..datastore.buckets() {
        tips.extend(cells.log().tips(bucket, crate::cell::Consistency::Strong).await?);
    }
    Ok(tips)
}

/// What an error means for scripts.
pub(super) fn exit_of(error: &anyhow::Error) -> Exit {
    let of_store = |error: &StoreError| match error.kind {
        ErrorKind::Invalid | ErrorKind::Undecodable => Exit::Failed,
        _ => Exit::OutOfReach,
    };
    for cause in error.chain() {
        if is_closed_pipe(cause) {
            return Exit::Done;
        }
        if cause.is::<ConfigError>() {
            return Exit::Usage;
        }
        if cause.is::<NotThere>() {
            return Exit::NotFound;
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return of_store(error);
        }
        if let Some(PutError::Store(error)) = cause.downcast_ref::<PutError>() {
            return of_store(error);
        }
        if let Some(TailError::Store(error)) = cause.downcast_ref::<TailError>() {
            return of_store(error);
        }
        if let Some(error) = cause.downcast_ref::<OpenError>() {
            return match error {
                OpenError::Store(error) => of_store(error),
                OpenError::File(_) | OpenError::MissingTables { .. } | OpenError::Credentials(_) => Exit::OutOfReach,
                _ => Exit::Usage,
            };
        }
    }
    Exit::Failed
}

/// Whether a reader has seen enough of our output.
pub(super) fn is_closed_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
