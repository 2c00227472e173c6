//! Which triggers are at work: those of the config, registered, less those that were retired meanwhile.

use super::{Setup, TriggerSpec, WorkerError};
use crate::{
    cell::{
        AddedId, Answer, Consistency, ErrorKind, Ledger, StoreError, TriggerId, TriggerRecord, TriggerState, planted,
    },
    dispatch::{Budget, Start, Trigger},
    filter::Filter,
    lease::{Gone, View, nudge_all},
    shard::{News, Triggers},
    store::Cells,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::watch;

/// How often a registration is tried anew because the name was renamed, or freed, at the same time.
const TRIES: u32 = 4;

/// What the coordination is told of the triggers at work.
pub(super) fn ids(triggers: &[Arc<Trigger>]) -> BTreeSet<TriggerId> {
    triggers.iter().map(|trigger| trigger.record.id.clone()).collect()
}

/// Puts other triggers to work, and gives those that leave. They finish what they hold, beyond the budget for that
/// long.
pub(super) fn replace(
    at_work: &News<Triggers>,
    after: Vec<Arc<Trigger>>,
    budget: &Budget,
    working_for: &watch::Sender<BTreeSet<TriggerId>>,
) -> Vec<Arc<Trigger>> {
    let before = at_work.get().active;
    budget.share_among(after.len());
    working_for.send_replace(ids(&after));
    let stays = |old: &Arc<Trigger>| after.iter().any(|new| Arc::ptr_eq(old, new));
    let leaving = before.iter().filter(|old| !stays(old)).cloned().collect();
    at_work.change(|triggers| {
        triggers.active = after.into();
        true
    });
    leaving
}

/// The triggers at work without those that were retired; `None` when there are none such.
pub(super) fn without_retired(active: &[Arc<Trigger>], gone: &BTreeMap<TriggerId, Gone>) -> Option<Vec<Arc<Trigger>>> {
    if planted::is("a retired trigger is called on") {
        return None;
    }
    let is_retired = |trigger: &Arc<Trigger>| matches!(gone.get(&trigger.record.id), Some(Gone::Retired(_)));
    active.iter().any(is_retired).then(|| active.iter().filter(|trigger| !is_retired(trigger)).cloned().collect())
}

/// What was told already of the triggers at work.
#[derive(Default)]
pub(super) struct Told {
    gone: BTreeSet<TriggerId>,
    renamed: BTreeSet<TriggerId>,
}

impl Told {
    /// Says, once each, which triggers were retired or renamed under this worker, or are known to nobody.
    pub(super) fn tell(&mut self, active: &[Arc<Trigger>], view: &View) {
        for trigger in active {
            let (id, name) = (&trigger.record.id, &trigger.name);
            let record = view.triggers.iter().find(|record| record.id == *id);
            if let Some(record) = record.filter(|record| record.name != *name) {
                if self.renamed.insert(id.clone()) {
                    tracing::warn!(trigger = %name, now = %record.name,
                        "this trigger was renamed, and is called on: rename it in the config too");
                }
            } else if record.is_some() {
                self.renamed.remove(id);
            }
            match view.gone.get(id) {
                Some(Gone::Retired(_)) => tracing::warn!(trigger = %name,
                    "this trigger was retired: it is not called any more. While the config names it, a reload or a \
                     restart registers it anew, as a new trigger"),
                Some(Gone::Unknown) if self.gone.insert(id.clone()) => tracing::error!(trigger = %name,
                    "this trigger is no longer registered: the group's tables were made anew. Start this worker again"),
                Some(Gone::Unknown) => {}
                None => {
                    self.gone.remove(id);
                }
            }
        }
    }
}

/// Makes the configured triggers equal to registered ones. Those that did not change stay the same object. Nothing is
/// registered unless all that are known fit.
pub(super) async fn register(
    setup: &Setup,
    budget: &Budget,
    specs: &[TriggerSpec],
    before: &[Arc<Trigger>],
) -> Result<Vec<Arc<Trigger>>, WorkerError> {
    let ledger = &*setup.ledger;
    let registered = ledger.triggers().await?;
    let mut known: Vec<Option<TriggerRecord>> = Vec::with_capacity(specs.len());
    for spec in specs {
        let record = registered.iter().find(|record| record.goes_by(&spec.name)).cloned();
        fits(setup, spec, record.as_ref())?;
        known.push(record);
    }
    distinct(specs, known.iter().map(Option::as_ref))?;
    // Before any is registered: from then on a trim asks how far it is. And at each start: the datastore may have been restored
    // to before that.
    let mut enlisted = BTreeSet::new();
    for spec in specs {
        if enlisted.insert(&spec.config.source) {
            source(setup, spec)?.log().enlist(&setup.group).await?;
        }
    }
    let fresh = known.iter().any(Option::is_none);
    let mut records = Vec::with_capacity(specs.len());
    for (spec, known) in specs.iter().zip(known) {
        let record = match known {
            Some(record) => record,
            None => {
                let record = register_new(ledger, source(setup, spec)?, spec).await?;
                fits(setup, spec, Some(&record))?;
                record
            }
        };
        records.push(record);
    }
    distinct(specs, records.iter().map(Some))?;
    let triggers = specs.iter().zip(records).map(|(spec, record)| {
        let same = before.iter().find(|old| {
            let same = (&old.record.id, &old.name, &old.config) == (&record.id, &spec.name, &spec.config);
            same && Arc::ptr_eq(&old.handler, &spec.handler)
        });
        match same {
            Some(same) => Ok(same.clone()),
            None => at_work(setup, budget, spec, record).map(Arc::new),
        }
    });
    let triggers = triggers.collect::<Result<_, WorkerError>>()?;
    if fresh {
        // A hint: it may be the first of its datastore, whose shards nobody holds yet.
        let _ = nudge_all(ledger).await;
    }
    Ok(triggers)
}

fn source<'a>(setup: &'a Setup, spec: &TriggerSpec) -> Result<&'a Cells, WorkerError> {
    setup
        .sources
        .get(&spec.config.source)
        .ok_or_else(|| WorkerError::NoSource { trigger: spec.name.clone(), source_name: spec.config.source.clone() })
}

/// Whether a trigger of the config can be the registered one.
fn fits(setup: &Setup, spec: &TriggerSpec, record: Option<&TriggerRecord>) -> Result<(), WorkerError> {
    let cells = source(setup, spec)?;
    let Some(record) = record else { return Ok(()) };
    if record.source != spec.config.source {
        return Err(WorkerError::OtherSource {
            trigger: spec.name.clone(),
            registered: record.source.clone(),
            configured: spec.config.source.clone(),
        });
    }
    if record.incarnation != cells.datastore().incarnation {
        return Err(WorkerError::OtherIncarnation {
            trigger: spec.name.clone(),
            source_name: spec.config.source.clone(),
            registered: record.incarnation.to_string(),
            now: cells.datastore().incarnation.to_string(),
        });
    }
    Ok(())
}

/// Refuses a config that has a trigger twice, by names of different times: two cursors would share a checkpoint.
fn distinct<'a>(
    specs: &[TriggerSpec],
    records: impl Iterator<Item = Option<&'a TriggerRecord>>,
) -> Result<(), WorkerError> {
    let mut met: BTreeMap<&TriggerId, &TriggerSpec> = BTreeMap::new();
    for (spec, record) in specs.iter().zip(records) {
        let Some(record) = record else { continue };
        if let Some(other) = met.insert(&record.id, spec) {
            let former = if spec.name == record.name { other } else { spec };
            return Err(WorkerError::SameTrigger { trigger: record.name.clone(), former: former.name.clone() });
        }
    }
    Ok(())
}

fn at_work(setup: &Setup, budget: &Budget, spec: &TriggerSpec, record: TriggerRecord) -> Result<Trigger, WorkerError> {
    let TriggerSpec { name, config, handler } = spec.clone();
    let filter = Filter::new(&config.columns, config.filter.as_deref())
        .map_err(|error| WorkerError::Filter { trigger: name.clone(), error })?;
    Ok(Trigger::new(name, record, config, filter, handler, source(setup, spec)?.clone(), budget.share()))
}

/// Registers a trigger, or takes what another worker registered, or a person renamed, at the same time.
async fn register_new(ledger: &dyn Ledger, cells: &Cells, spec: &TriggerSpec) -> Result<TriggerRecord, StoreError> {
    let datastore = cells.datastore();
    let start = match spec.config.start {
        Start::Newest => {
            let mut tips = vec![AddedId(0); datastore.shards as usize];
            for bucket in 0..datastore.buckets() {
                for tip in cells.log().tips(bucket, Consistency::Strong).await? {
                    tips[tip.shard.0 as usize] = tip.tip;
                }
            }
            Some(tips.into())
        }
        Start::Oldest | Start::Time(_) | Start::Added(_) => None,
    };
    let record = TriggerRecord {
        id: TriggerId::random(),
        name: spec.name.clone(),
        formerly: BTreeSet::new(),
        source: spec.config.source.clone(),
        incarnation: datastore.incarnation.clone(),
        state: TriggerState::Active,
        generation: 0,
        start,
        revision: 0,
    };
    let mut tries = 1;
    loop {
        match ledger.register(&record).await? {
            Answer::Accepted(record) | Answer::Refused(Some(record)) => return Ok(record),
            // A former name, by now.
            Answer::Refused(None) => {
                let found = ledger.triggers().await?.into_iter().find(|record| record.goes_by(&spec.name));
                match found {
                    Some(record) => return Ok(record),
                    None if tries < TRIES => tries += 1,
                    None => {
                        let (kind, table) = (ErrorKind::Conflict, "control".to_owned());
                        return Err(StoreError { kind, table, operation: "PutItem", source: None });
                    }
                }
            }
        }
    }
}
