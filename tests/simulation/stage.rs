//! What the workers of a world stand on: the twins in memory, or the real SDK over the embedded store; and the way to it.

use super::{
    connector::{Line, Server},
    network::{FarLedger, FarLog},
    operator::Truth,
    oracle::Oracle,
    swarm::Level,
    watched::Watched,
    weather::{Network, SharedWeather},
};
use cellhook::{
    cell::*,
    store::{
        Store,
        memory::{MemoryLedger, MemoryLog},
    },
};
use std::sync::Arc;

/// See the module.
pub(super) struct Stage {
    truth: Truth,
    base: Base,
}

enum Base {
    Port { log: Arc<MemoryLog>, ledger: Arc<Watched>, oracle: Arc<Oracle> },
    Sdk { server: Arc<Server>, datastore: Name, group: Name },
}

/// One host's way to the store.
pub(super) enum Way {
    Port(Truth),
    Sdk { store: Store, datastore: Name, group: Name },
}

impl Stage {
    pub(super) async fn new(
        level: Level,
        new: &NewDatastore,
        group: Name,
        weather: SharedWeather,
        oracle: Arc<Oracle>,
    ) -> Self {
        if level == Level::Port {
            let ledger = Arc::new(Watched { inner: MemoryLedger::new(), oracle: oracle.clone() });
            let log = Arc::new(MemoryLog::new(new));
            let truth = Truth { log: log.clone(), ledger: ledger.clone() };
            return Self { truth, base: Base::Port { log, ledger, oracle } };
        }
        let server = Arc::new(Server::new(oracle));
        let store = Store::over(Line { server: server.clone(), network: Network { host: 0, weather } });
        store.init_datastore(new).await.unwrap();
        store.init_group(&group).await.unwrap();
        let truth =
            Truth { log: store.datastore(&new.name, None).await.unwrap(), ledger: store.ledger(&group).await.unwrap() };
        Self { truth, base: Base::Sdk { server, datastore: new.name.clone(), group } }
    }

    pub(super) fn truth(&self) -> Truth {
        self.truth.clone()
    }

    pub(super) fn way(&self, network: Network) -> Way {
        match &self.base {
            Base::Port { log, ledger, oracle } => {
                let log = FarLog { inner: log.clone(), network: network.clone(), oracle: Some(oracle.clone()) };
                let ledger = FarLedger::new(ledger.clone(), network, oracle.clone());
                Way::Port(Truth { log: Arc::new(log), ledger: Arc::new(ledger) })
            }
            Base::Sdk { server, datastore, group } => {
                let store = Store::over(Line { server: server.clone(), network });
                Way::Sdk { store, datastore: datastore.clone(), group: group.clone() }
            }
        }
    }
}

impl Way {
    /// Opens the store, where that can be done just now.
    pub(super) async fn open(&self) -> Option<(Arc<dyn Log>, Arc<dyn Ledger>)> {
        match self {
            Self::Port(way) => Some((way.log.clone(), way.ledger.clone())),
            Self::Sdk { store, datastore, group } => {
                Some((store.datastore(datastore, None).await.ok()?, store.ledger(group).await.ok()?))
            }
        }
    }
}
