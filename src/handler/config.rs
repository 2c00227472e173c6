//! What the config says about a handler: `[triggers.NAME.handler]`.

use super::{command, exec, group::Program, log};
use crate::cell::{Handler, Name};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

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
        let program = match self {
            Self::Exec(exec) => {
                if !(1..=CHILDREN_MAX).contains(&exec.children) {
                    return Err(BuildError::Children(exec.children));
                }
                exec.program()
            }
            Self::Command(command) => command.program(),
            Self::Cells(_) | Self::Log(_) => return Ok(()),
        };
        if program.command.first().is_none_or(String::is_empty) {
            return Err(BuildError::NoCommand);
        }
        if program.command.iter().any(|word| word.contains('\0')) {
            return Err(BuildError::ZeroByte("command"));
        }
        for name in program.env.keys().chain(&program.env_pass) {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(BuildError::Variable(name.clone()));
            }
        }
        if program.env.values().any(|value| value.contains('\0')) {
            return Err(BuildError::ZeroByte("env"));
        }
        Ok(())
    }

    /// Makes the handler. For kind `exec` that starts its children, in the tokio runtime that this is called in.
    ///
    /// # Errors
    /// As [`Config::check`], and for kind `cells`.
    pub fn build(&self, trigger: &Name) -> Result<Arc<dyn Handler>, BuildError> {
        self.check()?;
        Ok(match self {
            Self::Exec(exec) => exec.build(trigger)?,
            Self::Command(command) => Arc::new(command::Command::new(trigger, command.program())),
            Self::Cells(_) => return Err(BuildError::NeedsStore),
            Self::Log(config) => Arc::new(log::Log::new(config.body)),
        })
    }
}

impl ExecConfig {
    /// Starts the children, in the tokio runtime that this is called in.
    ///
    /// # Errors
    /// As [`Config::check`].
    pub fn build(&self, trigger: &Name) -> Result<Arc<exec::Exec>, BuildError> {
        Config::Exec(self.clone()).check()?;
        Ok(Arc::new(exec::Exec::start(trigger, self.program(), self.children as usize)))
    }

    fn program(&self) -> Program {
        let Self { command, children: _, dir, env, env_pass } = self.clone();
        Program { command, dir, env, env_pass }
    }
}

impl CommandConfig {
    fn program(&self) -> Program {
        let Self { command, dir, env, env_pass } = self.clone();
        Program { command, dir, env, env_pass }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_is_read_with_its_defaults() {
        let exec = ExecConfig {
            command: vec!["python3".to_owned(), "x.py".to_owned()],
            children: 1,
            dir: None,
            env: BTreeMap::new(),
            env_pass: vec!["PATH".to_owned()],
        };
        assert_eq!(read("kind = 'exec'\ncommand = ['python3', 'x.py']"), Ok(Config::Exec(exec)));
        assert_eq!(read("kind = 'log'"), Ok(Config::Log(LogConfig { body: false })));
        let cells = CellsConfig { datastore: Name::new("copies").unwrap() };
        assert_eq!(read("kind = 'cells'\ndatastore = 'copies'"), Ok(Config::Cells(cells)));
        let command =
            read("kind = 'command'\ncommand = ['true']\ndir = '/tmp'\nenv = { A = 'b' }\nenv_pass = []").unwrap();
        let Config::Command(command) = command else { unreachable!("it is a command") };
        assert_eq!((command.dir, command.env["A"].as_str(), command.env_pass.len()), (Some("/tmp".into()), "b", 0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(read("kind = 'exec'\ncommand = ['x']\nchildrens = 2").unwrap_err().contains("childrens"));
        assert!(read("kind = 'lambda'").unwrap_err().contains("lambda"));
        for (text, error) in [
            ("kind = 'exec'\ncommand = []", BuildError::NoCommand),
            ("kind = 'command'\ncommand = ['']", BuildError::NoCommand),
            ("kind = 'exec'\ncommand = ['x']\nchildren = 0", BuildError::Children(0)),
            ("kind = 'exec'\ncommand = [\"a\\u0000\"]", BuildError::ZeroByte("command")),
            ("kind = 'exec'\ncommand = ['x']\nenv = { 'A=B' = '' }", BuildError::Variable("A=B".to_owned())),
            ("kind = 'exec'\ncommand = ['x']\nenv_pass = ['']", BuildError::Variable(String::new())),
        ] {
            assert_eq!(read(text).unwrap().check(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_config_is_written_as_it_is_read() {
        for text in ["kind = 'log'\nbody = true", "kind = 'exec'\ncommand = ['x', 'y']\nchildren = 3\ndir = '/srv'"] {
            let config = read(text).unwrap();
            assert_eq!(read(&toml::to_string(&config).unwrap()), Ok(config));
        }
    }
}
