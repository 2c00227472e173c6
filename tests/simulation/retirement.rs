//! The end of a trigger while its workers are at work: the config loses it, an operator retires it with the library's own verb,
//! over a network as bad as the workers'; he may die or give up on the way, and ask again. In some worlds the config has the name
//! again later, and it is registered anew.

use super::{hosts::Host, operator::Truth, oracle::Oracle, stage::Way};
use cellhook::{
    cell::*,
    lease::{remains, retire},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// A trigger has been registered for so long: no late request of a worker that wanted to register it is under way.
pub(super) const SETTLED: Duration = Duration::from_secs(45);

/// How an operator's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It is retired, and nothing is left.
    Whole,
    /// Nothing was found that could be retired.
    Nothing,
    /// He died, or was told an error.
    CutOff,
}

/// Where a retirement stands.
enum Stands {
    /// Nobody has asked for one.
    Not,
    /// An operator is at it; what he is told will lie there.
    Asked(Arc<Mutex<Option<Told>>>),
    /// It was cut off, and is to be asked for again.
    CutOff,
    /// It is over, and the config may have the name again.
    Over,
    /// The config has it again.
    Anew,
}

/// The retirement of one trigger of a world.
pub(super) struct Retirement {
    stands: Stands,
    pub(super) name: Option<Name>,
    id: Option<TriggerId>,
    /// When it was last asked for; since when no worker has it in its config.
    asked: Instant,
    gone_since: Option<Instant>,
}

/// What the world has to do next.
pub(super) enum Next {
    Nothing,
    /// The operator's part, for a host of its own.
    Ask,
    /// The config has the name again.
    NameAnew,
}

impl Retirement {
    pub(super) fn new() -> Self {
        Self { stands: Stands::Not, name: None, id: None, asked: Instant::now(), gone_since: None }
    }

    pub(super) fn is_begun(&self) -> bool {
        self.name.is_some()
    }

    /// Whether the workers still have it in their config, and have to hear of its end by themselves.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_begun() && !matches!(self.stands, Stands::Over | Stands::Anew)
    }

    pub(super) fn begin(&mut self, record: &TriggerRecord, name: Name) {
        (self.name, self.id, self.stands) = (Some(name), Some(record.id.clone()), Stands::CutOff);
    }

    /// One second has passed. `again` is drawn: whether an operator asks again now what was cut off.
    pub(super) async fn tick(
        &mut self,
        truth: &Truth,
        again: bool,
        is_healthy: bool,
        anew: bool,
        hosts: &[Host],
    ) -> Next {
        if let Stands::Asked(told) = &self.stands {
            let told = *told.lock().unwrap();
            match told {
                None => return Next::Nothing,
                Some(Told::CutOff) => self.stands = Stands::CutOff,
                Some(Told::Whole | Told::Nothing) => self.stands = Stands::Over,
            }
        }
        match self.stands {
            Stands::CutOff if again || is_healthy => Next::Ask,
            Stands::Over => {
                if !self.nobody_has_it(hosts) {
                    self.gone_since = None;
                }
                let gone_since = *self.gone_since.get_or_insert_with(Instant::now);
                if self.asked.elapsed() < SETTLED {
                    return Next::Nothing;
                }
                // What a worker wrote that had not heard of it goes when it is asked for once more.
                if self.left(truth).await.is_some() {
                    return if is_healthy || again { Next::Ask } else { Next::Nothing };
                }
                if anew && gone_since.elapsed() > SETTLED {
                    self.stands = Stands::Anew;
                    return Next::NameAnew;
                }
                Next::Nothing
            }
            _ => Next::Nothing,
        }
    }

    fn nobody_has_it(&self, hosts: &[Host]) -> bool {
        hosts.iter().all(|host| {
            let has = host.specs.iter().any(|spec| Some(&spec.name) == self.name.as_ref());
            !has && (host.agreed || !host.has_opened())
        })
    }

    /// Whether something is still to be done about it; what, for people.
    pub(super) async fn left(&self, truth: &Truth) -> Option<String> {
        let id = self.id.as_ref()?;
        if !matches!(self.stands, Stands::Over | Stands::Anew) {
            return Some(format!("the retirement of {id} is not over"));
        }
        let parked = truth.ledger.all_parked(None, 10_000).await.unwrap();
        let parked = parked.iter().filter(|parked| parked.trigger == *id).count();
        let leases = truth.ledger.leases(&Name::new("trips").unwrap()).await.unwrap();
        let leases = leases.iter().filter(|lease| lease.checkpoints.contains_key(id)).count();
        (parked + leases > 0).then(|| format!("of {id}, which is retired, {parked} parked and {leases} checkpoints"))
    }

    /// Whether the config gets the name again some day.
    pub(super) fn waits(&self, anew: bool) -> bool {
        anew && self.is_begun() && !matches!(self.stands, Stands::Anew)
    }

    /// The operator's part: to be run as a task. He dies after `patience`.
    pub(super) fn ask(
        &mut self,
        way: Way,
        oracle: Arc<Oracle>,
        patience: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let told = Arc::new(Mutex::new(None));
        let by_name = self.name.clone().expect("it is begun");
        let id = self.id.clone().expect("it is begun");
        (self.stands, self.asked) = (Stands::Asked(told.clone()), Instant::now());
        async move {
            oracle.retires(&id);
            let end = timeout(patience, end(&way, &id, &by_name)).await.unwrap_or(Told::CutOff);
            if end == Told::Whole {
                oracle.is_whole(&id);
            }
            *told.lock().unwrap() = Some(end);
        }
    }
}

/// As `cellhook triggers retire` does it.
async fn end(way: &Way, id: &TriggerId, name: &Name) -> Told {
    let (log, ledger) = loop {
        match way.open().await {
            Some(open) => break open,
            None => sleep(Duration::from_secs(1)).await,
        }
    };
    let source = &log.datastore().name;
    let Ok(registered) = ledger.triggers().await else { return Told::CutOff };
    let found = match registered.into_iter().find(|record| record.goes_by(name)) {
        Some(record) => Some(record),
        None => match remains(&*ledger, source, name).await {
            Ok(left) => left.into_iter().next(),
            Err(_) => return Told::CutOff,
        },
    };
    let Some(record) = found.filter(|record| record.id == *id) else { return Told::Nothing };
    let shards: Vec<ShardRef> =
        log.datastore().all_shards().map(|shard| ShardRef { source: source.clone(), shard }).collect();
    match retire(&*ledger, &record, &shards, |_| ()).await {
        Ok(()) => Told::Whole,
        Err(_) => Told::CutOff,
    }
}
