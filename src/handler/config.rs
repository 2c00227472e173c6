//! What the config says about a handler: `[triggers.NAME.handler]`.

use crate::cell::Name;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// Most children of an `exec` handler.
const CHILDREN_MAX: u32 = 256;

/// A handler, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Config {
    /// Long-lived children that speak NDJSON.
    Exec(ExecConfig),
    /// One process per event.
    Command(CommandConfig),
    /// Appends to another datastore.
    Cells(CellsConfig),
    /// Prints the event.
    Log(LogConfig),
}

/// Of a handler of kind `exec`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// The program and its arguments, without a shell.
    pub command: Vec<String>,
    /// How many of them run, 1 to 256.
    #[serde(default = "one")]
    pub children: u32,
    /// Working directory; default: the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Variables of its environment, which is empty otherwise.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables that it gets as the daemon has them.
    #[serde(default = "path")]
    pub env_pass: Vec<String>,
}

/// Of a handler of kind `command`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments, without a shell.
    pub command: Vec<String>,
    /// Working directory; default: the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Variables of its environment, which is empty otherwise.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables that it gets as the daemon has them.
    #[serde(default = "path")]
    pub env_pass: Vec<String>,
}

/// Of a handler of kind `cells`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CellsConfig {
    /// Where the cells go.
    pub datastore: Name,
}

/// Of a handler of kind `log`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Whether bodies are printed too.
    #[serde(default)]
    pub body: bool,
}

fn one() -> u32 {
    1
}

fn path() -> Vec<String> {
    vec!["PATH".to_owned()]
}

/// Why there is no handler for a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No program is named.
    #[error("command is empty; it names the program and its arguments, as in [\"python3\", \"handler.py\"]")]
    NoCommand,
    /// A program, an argument or a variable holds a zero byte, which no process can be given.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    /// A number of children that cannot be.
    #[error("children is {0}; it must be 1 to {CHILDREN_MAX}")]
    Children(u32),
    /// A variable without a name, or with `=` in it.
    #[error("{0:?} cannot be the name of an environment variable")]
    Variable(String),
    /// This kind is made of a store, which only the engine has.
    #[error("a handler of kind \"cells\" is built with the store that it appends to")]
    NeedsStore,
}

impl Config {
    /// Checks all that can be known without starting anything.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self) -> Result<(), BuildError> {
        let (command, env, env_pass) = match self {
            Self::Exec(exec) => {
                if !(1..=CHILDREN_MAX).contains(&exec.children) {
                    return Err(BuildError::Children(exec.children));
                }
                (&exec.command, &exec.env, &exec.env_pass)
            }
            Self::Command(command) => (&command.command, &command.env, &command.env_pass),
            Self::Cells(_) | Self::Log(_) => return Ok(()),
        };
        if command.first().is_none_or(String::is_empty) {
            return Err(BuildError::NoCommand);
        }
        if command.iter().any(|word| word.contains('\0')) {
            return Err(BuildError::ZeroByte("command"));
        }
        for name in env.keys().chain(env_pass) {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(BuildError::Variable(name.clone()));
            }
        }
        if env.values().any(|value| value.contains('\0')) {
            return Err(BuildError::ZeroByte("env"));
        }
        Ok(())
    }
}
