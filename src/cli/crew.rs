//! The configured triggers, each with its running handler.

use crate::{
    cell::{Handler, Name},
    config::Config,
    handler,
    store::Cells,
    worker::TriggerSpec,
};
use anyhow::{Context as _, bail};
use std::{collections::BTreeMap, sync::Arc};

/// By trigger, its handler and the config that it was built from.
type Handlers = BTreeMap<Name, (handler::Config, Arc<dyn Handler>)>;

/// Builds handlers, and remembers them: a reload keeps those whose config did not change.
pub(super) struct Crew {
    sources: BTreeMap<Name, Cells>,
    known: Handlers,
}

/// The handlers of a config, those that run already among them. Dropped, it ends the others.
pub(super) struct Mustered(Handlers);

impl Crew {
    pub(super) fn new(sources: BTreeMap<Name, Cells>) -> Self {
        Self { sources, known: BTreeMap::new() }
    }

    /// A spec for each trigger of a config. Nothing is started before all sources are found, and nothing is known before
    /// it is [adopted](Self::adopt).
    pub(super) fn muster(&self, config: &Config) -> anyhow::Result<(Vec<TriggerSpec>, Mustered)> {
        for (name, trigger) in &config.triggers {
            if !self.sources.contains_key(&trigger.source) {
                bail!("triggers.{name}.source: datastore {} is new; that takes a restart", trigger.source);
            }
        }
        let mut fresh = BTreeMap::new();
        let mut specs = Vec::new();
        for (name, trigger) in &config.triggers {
            let handler = match self.known.get(name) {
                Some((known, handler)) if *known == trigger.handler => handler.clone(),
                _ => self.build(name, &trigger.handler).with_context(|| format!("triggers.{name}.handler"))?,
            };
            fresh.insert(name.clone(), (trigger.handler.clone(), handler.clone()));
            specs.push(TriggerSpec { name: name.clone(), config: trigger.clone(), handler });
        }
        Ok((specs, Mustered(fresh)))
    }

    /// These are at work now.
    pub(super) fn adopt(&mut self, Mustered(handlers): Mustered) {
        self.known = handlers;
    }

    fn build(&self, name: &Name, config: &handler::Config) -> anyhow::Result<Arc<dyn Handler>> {
        match config {
            handler::Config::Cells(copy) => {
                let Some(cells) = self.sources.get(&copy.datastore) else {
                    bail!("datastore {} is new; that takes a restart", copy.datastore);
                };
                Ok(Arc::new(handler::Copy::new(cells.clone())))
            }
            other => Ok(other.build(name)?),
        }
    }
}
