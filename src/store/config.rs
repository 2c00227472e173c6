//! Where the tables are.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One file for all processes of a host.
    #[default]
    Embedded,
    /// DynamoDB, or a server that speaks like it.
    Dynamodb,
}

/// What an acknowledged write of the embedded store survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power cut.
    #[default]
    Full,
    /// The end of the process; a power cut may lose the last second.
    Normal,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which store. Default embedded.
    pub kind: Kind,
    /// Embedded: the file. Default `cellhook.db`.
    pub path: PathBuf,
    /// Embedded: full (default) or normal.
    pub durability: Durability,
    /// In front of every table's name. Default none.
    pub table_prefix: String,
    /// DynamoDB: another server. Default the region's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// DynamoDB. Default from the usual AWS places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// DynamoDB: a named profile. Default from the usual AWS places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::Embedded,
            path: "cellhook.db".into(),
            durability: Durability::Full,
            table_prefix: String::new(),
            endpoint: None,
            region: None,
            profile: None,
        }
    }
}
