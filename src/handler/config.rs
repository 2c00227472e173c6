//! What the file says of a handler.

use crate::cell::Name;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// `[triggers.NAME.handler]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Config {
    /// Long-lived children.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
        /// How many.
        #[serde(default = "one")]
        children: u32,
        /// Working directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dir: Option<PathBuf>,
        /// Environment.
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// Variables that are passed on.
        #[serde(default)]
        env_pass: Vec<String>,
    },
    /// Append to another datastore.
    Cells {
        /// Which.
        datastore: Name,
    },
    /// Print.
    Log {},
}

fn one() -> u32 {
    1
}
