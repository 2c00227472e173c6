//! Where the tables are: the `[store]` part of the config file.

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// The `[store]` table of the config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// A file of this host, or DynamoDB.
    pub kind: Kind,
    /// Embedded: the file that all processes of the host share.
    pub path: PathBuf,
    /// Embedded: what an acknowledged write survives.
    pub durability: Durability,
    /// Put before the name of every table: letters, digits, `_`, `-` and `.`.
    pub table_prefix: String,
    /// DynamoDB: another server than the region's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// DynamoDB: default from the usual AWS places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// DynamoDB: the profile of the AWS config files; default from the usual AWS places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            path: "cellhook.db".into(),
            durability: Durability::default(),
            table_prefix: String::new(),
            endpoint: None,
            region: None,
            profile: None,
        }
    }
}

/// Where the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In one file, which every process of this host opens itself.
    #[default]
    Embedded,
    /// In DynamoDB, or a server that speaks its language.
    Dynamodb,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Dynamodb => "dynamodb",
        })
    }
}

/// What an acknowledged write to an embedded store survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Power cuts: one fsync a transaction.
    #[default]
    Full,
    /// Crashes and kills of processes. A power cut may lose the last second, and damages nothing.
    Normal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_means_the_defaults() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!((config.kind, config.durability), (Kind::Embedded, Durability::Full));
        assert_eq!(config.path, PathBuf::from("cellhook.db"));
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            kind = "dynamodb"
            path = "a.db"
            durability = "normal"
            table_prefix = "x-"
            endpoint = "http://127.0.0.1:8000"
            region = "eu-central-1"
            profile = "work"
        "#;
        let config: Config = toml::from_str(text).unwrap();
        let wanted = Config {
            kind: Kind::Dynamodb,
            path: "a.db".into(),
            durability: Durability::Normal,
            table_prefix: "x-".into(),
            endpoint: Some("http://127.0.0.1:8000".into()),
            region: Some("eu-central-1".into()),
            profile: Some("work".into()),
        };
        assert_eq!(config, wanted);
    }
}
