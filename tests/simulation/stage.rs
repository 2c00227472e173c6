//! What the workers of a world stand on: the twins in memory, or the real SDK over the embedded store; and the way to it.

use super::{
    network::{FarLedger, FarLog},
    operator::Truth,
    oracle::Oracle,
    swarm::Level,
    watched::Watched,
    weather::{Network, SharedWeather},
};
use cellhook::{
    cell::*,
    store::memory::{MemoryLedger, MemoryLog},
};
use std::sync::Arc;

/// See the module.
pub(super) struct Stage {
    log: Arc<MemoryLog>,
    ledger: Arc<Watched>,
    oracle: Arc<Oracle>,
}

/// One host's way to the store.
pub(super) struct Way {
    log: Arc<dyn Log>,
    ledger: Arc<dyn Ledger>,
}

impl Stage {
    pub(super) async fn new(
        _level: Level,
        new: &NewDatastore,
        _group: Name,
        _weather: SharedWeather,
        oracle: Arc<Oracle>,
    ) -> Self {
        let ledger = Arc::new(Watched { inner: MemoryLedger::new(), oracle: oracle.clone() });
        Self { log: Arc::new(MemoryLog::new(new)), ledger, oracle }
    }

    pub(super) fn truth(&self) -> Truth {
        Truth { log: self.log.clone(), ledger: self.ledger.clone() }
    }

    pub(super) fn way(&self, network: Network) -> Way {
        let log = FarLog { inner: self.log.clone(), network: network.clone(), oracle: Some(self.oracle.clone()) };
        let ledger = FarLedger::new(self.ledger.clone(), network, self.oracle.clone());
        Way { log: Arc::new(log), ledger: Arc::new(ledger) }
    }
}

impl Way {
    /// Opens the store, where that can be done just now.
    pub(super) async fn open(&self) -> Option<(Arc<dyn Log>, Arc<dyn Ledger>)> {
        Some((self.log.clone(), self.ledger.clone()))
    }
}
