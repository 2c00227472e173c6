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
use anyhow::Context as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A config and its store.
pub(super) struct Open {
    pub(super) config: Config,
    pub(super) store: Store,
}

impl Open {
    pub(super) async fn new(context: &Context) -> anyhow::Result<Self> {
        let config = context.config()?;
        let store = Store::open(&config.store).await?;
        context.opened(&config, &store);
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

    /// The groups that have triggers on a datastore, with their coordination.
    pub(super) async fn groups(&self, log: &dyn Log) -> anyhow::Result<Vec<(Name, Arc<dyn Ledger>)>> {
        let mut groups = Vec::new();
        for group in log.groups().await? {
            let ledger = self.store.ledger(&group).await.with_context(|| {
                format!("group {group} has triggers on {}, and how far they are cannot be read", log.datastore().name)
            })?;
            groups.push((group, ledger));
        }
        // The datastore may have been restored to before this one was told to it.
        let own = &self.config.group;
        if !groups.iter().any(|(group, _)| group == own) {
            match self.store.ledger(own).await {
                Ok(ledger) => groups.push((own.clone(), ledger)),
                Err(OpenError::MissingTables { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(groups)
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

/// Shards of a source whose leases are read one by one; of more, all leases of the source are.
const FEW_LEASES: usize = 16;

/// Asks the owners of these shards to look at their parked cells again. A hint: when it is lost, they look by themselves, later.
pub(super) async fn nudge_owners(ledger: &dyn Ledger, shards: &BTreeSet<ShardRef>) {
    let mut owners = BTreeSet::new();
    let mut of_source: BTreeMap<&Name, Vec<&ShardRef>> = BTreeMap::new();
    for shard in shards {
        of_source.entry(&shard.source).or_default().push(shard);
    }
    for (source, of_source) in of_source {
        if of_source.len() > FEW_LEASES {
            let leases = ledger.leases(source).await.unwrap_or_default();
            owners.extend(
                leases.into_iter().filter(|lease| shards.contains(&lease.shard)).filter_map(|lease| lease.owner),
            );
            continue;
        }
        for shard in of_source {
            if let Ok(Some(lease)) = ledger.lease(shard).await {
                owners.extend(lease.owner);
            }
        }
    }
    for owner in owners {
        let _ = ledger.nudge(&owner, Nudge::Parked).await;
    }
}
