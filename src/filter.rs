//! Temporary: columns only, until the filter room lands.

use crate::cell::{Cell, Datastore};

/// Which cells a trigger is called for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    columns: Vec<String>,
}

/// What to do with a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Call.
    Call,
    /// Pass it over.
    Pass,
    /// Park it as dead.
    Failed(String),
}

impl Filter {
    /// By columns.
    #[must_use]
    pub fn new(columns: &[String]) -> Self {
        Self { columns: columns.to_vec() }
    }
    /// Decides.
    #[must_use]
    pub fn decide(&self, cell: &Cell, _: &Datastore) -> Decision {
        if self.columns.is_empty() || self.columns.iter().any(|column| *column == *cell.key.column) {
            Decision::Call
        } else {
            Decision::Pass
        }
    }
}
