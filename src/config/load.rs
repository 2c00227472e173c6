//! Finding the file, laying the environment over it, and telling what is wrong with either: the line or the variable, the
//! key, and what would be right.

use super::{
    Config, File,
    tree::{Override, Place, Tree},
};
use crate::cell::setting::BadSetting;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};
use toml::de::{DeValue, Deserializer};

/// Where a file is looked for when nobody names one.
const PLACES: [&str; 2] = ["./config/cellhook.toml", "/etc/cellhook/cellhook.toml"];
/// Names the file, unless `--config` does.
const CONFIG_VARIABLE: &str = "CELLHOOK_CONFIG";
/// What the name of an override begins with.
const PREFIX: &str = "CELLHOOK_";
/// Variables that begin like an override and are none: the daemon gives them to handlers' children, and a child may call
/// this program.
const NO_OVERRIDES: [&str; 12] = [
    "CONFIG",
    "API_URL",
    "EVENT_ID",
    "TRIGGER",
    "DATASTORE",
    "ROW_KEY",
    "COLUMN",
    "REF_KEY",
    "ADDED_ID",
    "SHARD",
    "ATTEMPT",
    "EPOCH",
];
/// Most parts of the name of an override: what is made of it is walked by recursion. Keys have fewer.
const DEPTH_MAX: usize = 16;
/// Longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no file.
    #[error("no config file: looked for {}; write one, or name one with --config or {CONFIG_VARIABLE}", list(looked))]
    NotFound {
        /// Where.
        looked: Vec<PathBuf>,
    },
    /// It cannot be read.
    #[error("config file {} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says something that is wrong.
    #[error("{place}: {}{reason}", KeyPart(key))]
    Invalid {
        /// `file:line`, or the environment variable.
        place: String,
        /// Which key; empty for what is no TOML.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

struct KeyPart<'a>(&'a str);

impl fmt::Display for KeyPart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The environment variables that a config depends on, as values, so that a test has its own.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
    pid: u32,
}

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self { pid: std::process::id(), ..Self::new(std::env::vars_os()) }
    }

    /// Of these variables.
    #[must_use]
    pub fn new<K: Into<OsString>, V: Into<OsString>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let named = |(name, value): (K, V)| Some((name.into().into_string().ok()?, value.into()));
        Self { variables: variables.into_iter().filter_map(named).collect(), pid: 0 }
    }

    fn get(&self, name: &str) -> Option<&OsString> {
        self.variables.get(name).filter(|value| !value.is_empty())
    }

    /// Whether systemd started this very process. A terminal or a CI job that systemd started hands `INVOCATION_ID` down to
    /// whatever runs in it; where systemd says which process it meant, that counts.
    fn under_systemd(&self) -> bool {
        let meant = self.get("SYSTEMD_EXEC_PID").map(|pid| pid.to_str() == Some(self.pid.to_string().as_str()));
        let service = ["INVOCATION_ID", "NOTIFY_SOCKET"].iter().any(|name| self.get(name).is_some());
        self.get("STATE_DIRECTORY").is_some() || meant.unwrap_or(service)
    }

    /// The directory for the service's state; the first when there are several.
    fn state_directory(&self) -> Option<PathBuf> {
        let text = self.get("STATE_DIRECTORY")?.to_str()?;
        text.split(':').next().map(PathBuf::from)
    }

    fn overrides(&self) -> Result<Vec<Override>, ConfigError> {
        let mut overrides = Vec::new();
        for (variable, value) in &self.variables {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            if NO_OVERRIDES.contains(&name) || is_service_link(name) {
                continue;
            }
            let Some(text) = value.to_str() else {
                let place = format!("environment variable {variable}");
                return Err(ConfigError::Invalid {
                    place,
                    key: String::new(),
                    reason: "its value is not UTF-8".into(),
                });
            };
            let path = path_of(name);
            if path.len() > DEPTH_MAX {
                let place = format!("environment variable {variable}");
                let reason = format!("its name has {} parts; no key has more than {DEPTH_MAX}", path.len());
                return Err(ConfigError::Invalid { place, key: String::new(), reason });
            }
            overrides.push(Override { variable: variable.clone(), path, text: text.into(), as_toml: false });
        }
        Ok(overrides)
    }
}

/// Whether Kubernetes makes such a variable for a service that is called `cellhook` or `cellhook-…`: every pod of the
/// namespace gets those, as `CELLHOOK_PORT_9464_TCP_ADDR`. No key has a name like these.
fn is_service_link(name: &str) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let ends = |end: &[&str]| match end {
        ["SERVICE", "HOST"] | ["SERVICE", "PORT", ..] | ["PORT"] => true,
        ["PORT", port, "TCP" | "UDP" | "SCTP"] | ["PORT", port, "TCP" | "UDP" | "SCTP", "PROTO" | "PORT" | "ADDR"] => {
            number(port)
        }
        _ => false,
    };
    // An empty word is the double underscore of a key.
    !words.contains(&"") && (0..words.len()).any(|at| ends(&words[at..]))
}

/// The key that a variable sets: lower case, but for the names of a handler's own environment.
fn path_of(name: &str) -> Vec<String> {
    let mut path: Vec<String> = name.splitn(5, "__").map(str::to_ascii_lowercase).collect();
    let of_handler = path.len() == 5 && path[0] == "triggers" && path[2] == "handler" && path[3] == "env";
    if of_handler {
        path[4] = name.splitn(5, "__").last().unwrap_or_default().into();
    } else if let Some(rest) = path.get(4).cloned() {
        path.truncate(4);
        path.extend(rest.split("__").map(String::from));
    }
    path
}

/// Finds the config file, reads it, lays the environment over it and checks the whole.
///
/// The file is `path`, or what `CELLHOOK_CONFIG` names, or `./config/cellhook.toml`, or `/etc/cellhook/cellhook.toml`.
///
/// # Errors
/// When there is no file, or something in it or in the environment is wrong; with the place and the key.
pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Config, ConfigError> {
    let path = find(path, environment)?;
    let text = read(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    let overrides = environment.overrides()?;
    understand(&path, &text, overrides, environment)
}

fn find(path: Option<&Path>, environment: &Environment) -> Result<PathBuf, ConfigError> {
    if let Some(named) = path.map(Path::to_owned).or_else(|| environment.get(CONFIG_VARIABLE).map(PathBuf::from)) {
        return Ok(named);
    }
    let looked = PLACES.map(PathBuf::from);
    let found = looked.iter().find(|path| path.exists()).cloned();
    found.ok_or_else(|| ConfigError::NotFound { looked: looked.to_vec() })
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has more than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What is wrong, and where.
struct Problem {
    place: Place,
    path: Vec<String>,
    reason: String,
}

impl Problem {
    fn told(self, file: &Path, overrides: &[Override]) -> ConfigError {
        let place = match self.place {
            Place::Line(line) => format!("{}:{line}", file.display()),
            Place::File => file.display().to_string(),
            Place::Override(which) => {
                format!("environment variable {}", overrides.get(which).map_or("", |one| &one.variable))
            }
        };
        ConfigError::Invalid { place, key: self.path.join("."), reason: self.reason }
    }
}

fn understand(
    file: &Path,
    text: &str,
    mut overrides: Vec<Override>,
    environment: &Environment,
) -> Result<Config, ConfigError> {
    // A variable's value is text, and only where its key wants no text it is read as TOML. So that the keys' own types
    // decide, text is tried first.
    let mut first_problems: BTreeMap<usize, Problem> = BTreeMap::new();
    loop {
        match attempt(file, text, &overrides, environment) {
            Ok(config) => return Ok(config),
            Err(problem) => {
                if let Place::Override(which) = problem.place {
                    if let Some(first) = first_problems.remove(&which) {
                        // The first is the telling one, unless it says no more than that text is not wanted there, or
                        // the second finds more that is right.
                        let deeper = problem.path.len() > first.path.len();
                        let telling = if deeper || first.reason.starts_with("invalid type") { problem } else { first };
                        return Err(telling.told(file, &overrides));
                    }
                    if overrides[which].toml().is_some() {
                        overrides[which].as_toml = true;
                        first_problems.insert(which, problem);
                        continue;
                    }
                }
                return Err(problem.told(file, &overrides));
            }
        }
    }
}

fn attempt(file: &Path, text: &str, overrides: &[Override], environment: &Environment) -> Result<Config, Problem> {
    let mut tree = match Tree::parse(text) {
        Ok(tree) => tree,
        Err(error) => {
            // What is no TOML has no tree to find lines in.
            let place = error.span().map_or(Place::File, |span| {
                let before = text.as_bytes().get(..span.start).unwrap_or_default();
                Place::Line(1 + before.iter().filter(|byte| **byte == b'\n').count())
            });
            return Err(Problem { place, path: Vec::new(), reason: error.message().replace('\n', "; ") });
        }
    };
    if let Err(misfit) = tree.lay(overrides) {
        let reason = "it is set to a plain value, so there is no key below it".into();
        return Err(Problem { place: Place::Override(misfit.which), path: vec![misfit.plain], reason });
    }
    place_paths(file, &mut tree, environment)?;
    check_secrets(&tree)?;
    let parsed = File::deserialize(Deserializer::from(tree.clone().root()));
    let file_shape = parsed.map_err(|error| blame(&tree, overrides, &error))?;
    let resolved = file_shape.resolve(file, environment.under_systemd());
    resolved.map_err(|BadSetting { key, reason }| {
        let path: Vec<&str> = key.split('.').collect();
        Problem { place: tree.place_of(&path), path: path.into_iter().map(String::from).collect(), reason }
    })
}

/// Refuses values of handlers' `env` that are no text, before the parser does: it would print them.
fn check_secrets(tree: &Tree<'_>) -> Result<(), Problem> {
    for trigger in tree.tables_in("triggers") {
        let key = ["triggers", trigger.as_str(), "handler", "env"];
        let wrong = |key: &[&str], reason: &str| {
            let path = key.iter().copied().map(String::from).collect();
            Err(Problem { place: tree.place_of(key), path, reason: reason.into() })
        };
        match tree.get(&key) {
            None => {}
            Some(DeValue::Table(variables)) => {
                for (name, value) in variables {
                    if !value.get_ref().is_str() {
                        let key = [&key[..], &[name.get_ref()]].concat();
                        return wrong(&key, "a variable is text: write its value in quotes");
                    }
                }
            }
            Some(_) => return wrong(&key, "it is a table of variables, as in { TOKEN = \"…\" }"),
        }
    }
    Ok(())
}

/// Makes relative paths absolute: they are relative to the file, but the store of a service lies in its state directory.
fn place_paths(file: &Path, tree: &mut Tree<'_>, environment: &Environment) -> Result<(), Problem> {
    let systemd = environment.under_systemd();
    let kind = tree.get(&["store", "kind"]);
    if systemd && kind.is_none() {
        let reason = "a service says which store it means: write kind = \"embedded\" or kind = \"dynamodb\"";
        let path = vec!["store.kind".into()];
        return Err(Problem { place: tree.place_of(&["store"]), path, reason: reason.into() });
    }
    let embedded = kind.is_none_or(|kind| kind.as_str() == Some("embedded"));
    let unknown_directory = |error: io::Error| {
        let reason = format!("the file's directory cannot be told: {error}");
        Problem { place: Place::File, path: Vec::new(), reason }
    };
    let absolute = std::path::absolute(file).map_err(unknown_directory)?;
    let beside_file = absolute.parent().unwrap_or(Path::new("/"));
    let state = environment.state_directory().filter(|_| systemd);
    let store_base = state.as_deref().unwrap_or(beside_file);

    let default = crate::store::Config::default().path;
    let written = match tree.get(&["store", "path"]) {
        Some(DeValue::String(text)) => Some(PathBuf::from(&**text)),
        Some(_) => None,
        None => embedded.then_some(default),
    };
    if let Some(path) = written {
        set_path(tree, &["store", "path"], &store_base.join(path))?;
    }
    for trigger in tree.tables_in("triggers") {
        let key = ["triggers", trigger.as_str(), "handler", "dir"];
        if let Some(dir) = tree.get(&key).and_then(DeValue::as_str).map(PathBuf::from) {
            set_path(tree, &key, &beside_file.join(dir))?;
        }
    }
    Ok(())
}

fn set_path(tree: &mut Tree<'_>, key: &[&str], path: &Path) -> Result<(), Problem> {
    match path.to_str() {
        Some(text) => {
            tree.set_text(key, text.into());
            Ok(())
        }
        None => {
            let reason = format!("{} is not UTF-8", path.display());
            Err(Problem { place: tree.place_of(key), path: vec![key.join(".")], reason })
        }
    }
}

/// Where the parser's complaint belongs, in our words.
fn blame(tree: &Tree<'_>, overrides: &[Override], error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or_default();
    let mut place = tree.place(&span);
    let mut path = match place {
        Place::Override(which) => overrides.get(which).map(|one| one.path.clone()).unwrap_or_default(),
        _ => tree.path_of(&span),
    };
    let message = error.message();
    let unknown = Unknown::read(message);
    // A table that is read as a whole, to see of which kind it is, has its errors told for the whole: look closer.
    if let Some(unknown) = unknown.as_ref().filter(|unknown| unknown.what == "field") {
        if path.last().is_none_or(|last| last != unknown.name) {
            path.push(unknown.name.into());
            place = closer(place, tree.place_of(&path.iter().map(String::as_str).collect::<Vec<_>>()));
        }
    } else if let Some(which) = misread(overrides, &path, message) {
        place = Place::Override(which);
        path.clone_from(&overrides[which].path);
    }
    let reason = match unknown {
        Some(unknown) => unknown.told(),
        None => match message.strip_prefix("missing field ") {
            Some(field) => format!("key {field} is missing; it has no default"),
            None if may_hold_secrets(tree, &path) => without_value(message),
            None => message.replace('\n', "; "),
        },
    };
    Problem { place, path, reason }
}

/// Whether the value of a key is something else where a table with a handler's `env` in it belongs.
fn may_hold_secrets(tree: &Tree<'_>, path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(path[..], ["triggers"] | ["triggers", _] | ["triggers", _, "handler"])
        && tree.get(&path).is_none_or(|value| !value.is_table())
}

/// "invalid type: string "…", expected a map", as serde says it, without the value.
fn without_value(message: &str) -> String {
    match (message.find(['"', '`']), message.rfind(", expected ")) {
        (Some(value), Some(expected)) if value < expected => {
            format!("{}(not shown){}", &message[..value], &message[expected..])
        }
        _ => "invalid type".into(),
    }
}

fn closer(place: Place, closer: Place) -> Place {
    if closer == Place::File { place } else { closer }
}

/// The override below this key whose text the message complains about.
fn misread(overrides: &[Override], path: &[String], message: &str) -> Option<usize> {
    overrides.iter().position(|one| {
        !one.as_toml
            && one.path.len() > path.len()
            && one.path.starts_with(path)
            && message.contains(&format!("string {:?}", one.text))
    })
}

/// "unknown field `x`, expected one of `a`, `b`", as serde says it.
struct Unknown<'a> {
    what: &'a str,
    name: &'a str,
    known: Vec<&'a str>,
}

impl<'a> Unknown<'a> {
    fn read(message: &'a str) -> Option<Self> {
        let (what, rest) = message.strip_prefix("unknown ")?.split_once(" `")?;
        let (name, rest) = rest.split_once("`, ")?;
        let known = rest.split('`').skip(1).step_by(2).collect();
        matches!(what, "field" | "variant").then_some(Self { what, name, known })
    }

    fn told(&self) -> String {
        let Self { what, name, known } = self;
        let what = if *what == "field" { "unknown key" } else { "unknown value" };
        let near = known.iter().map(|known| (strsim::normalized_damerau_levenshtein(name, known), known));
        match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((likeness, nearest)) if likeness >= 0.5 => format!("{what} `{name}`; did you mean `{nearest}`?"),
            Some(_) => format!("{what} `{name}`; known here: {}", known.join(", ")),
            None => format!("{what} `{name}`"),
        }
    }
}
