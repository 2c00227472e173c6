//! The store that the config names, opened; nothing is made.

use super::{
    Context,
    exit::{Absent, Usage},
    output::say,
};
use crate::{
    cell::{Ledger, Log, Name, Nudge, ShardRef, TriggerRecord},
    config::Config,
    store::{OpenError, Store},
};
use std::{collections::BTreeSet, sync::Arc};

/// A config and its store.
pub(super) struct Open {
    pub(super) config: Config,
    pub(super) store: Store,
}

impl Open {
    pub(super) async fn new(context: &Context) -> anyhow::Result<Self> {
        let config = context.config()?;
        let store = Store::open(&config.store).await?;
        Ok(Self { config, store })
    }

    /// A datastore of the config.
    pub(super) async fn datastore(&self, name: &Name) -> anyhow::Result<Arc<dyn Log>> {
        let Some(datastore) = self.config.datastores.get(name) else {
            let known: Vec<&str> = self.config.datastores.keys().map(Name::as_str).collect();
            let (file, known) = (self.config.file.display(), known.join(", "));
            return Err(Usage(format!("{file} has no datastore {name}; it has: {known}")).into());
        };
        Ok(self.store.datastore(name, Some(datastore.shards)).await?)
    }

    /// The group's coordination.
    pub(super) async fn ledger(&self) -> Result<Arc<dyn Ledger>, OpenError> {
        self.store.ledger(&self.config.group).await
    }
}

/// A registered trigger by its name, or by a former one.
pub(super) async fn trigger(ledger: &dyn Ledger, name: &Name) -> anyhow::Result<TriggerRecord> {
    let triggers = ledger.triggers().await?;
    let known: Vec<String> = triggers.iter().map(|trigger| trigger.name.to_string()).collect();
    let Some(found) = triggers.into_iter().find(|trigger| trigger.goes_by(name)) else {
        let known = if known.is_empty() { "none is".into() } else { format!("known: {}", known.join(", ")) };
        return Err(Absent(format!("no trigger {name} is registered in this group; {known}")).into());
    };
    if found.name != *name {
        say(format_args!("{name} was renamed to {}", found.name));
    }
    Ok(found)
}

/// The datastore of a trigger; its number of shards is the datastore's own.
pub(super) async fn source(open: &Open, trigger: &TriggerRecord) -> Result<Arc<dyn Log>, OpenError> {
    open.store.datastore(&trigger.source, None).await
}

/// Asks the owners of these shards to look at their parked cells again. A hint: when it is lost, they look by themselves, later.
pub(super) async fn nudge_owners(ledger: &dyn Ledger, shards: &BTreeSet<ShardRef>) {
    let mut owners = BTreeSet::new();
    for shard in shards {
        if let Ok(Some(lease)) = ledger.lease(shard).await {
            owners.extend(lease.owner);
        }
    }
    for owner in owners {
        let _ = ledger.nudge(&owner, Nudge::Parked).await;
    }
}
