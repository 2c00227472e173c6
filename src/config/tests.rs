//! What is found, what is refused and how that is told.

use super::*;
use crate::{
    cell::{Name, ShardId},
    dispatch::{Order, Start},
};
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const FIRST_RUN: &str = include_str!("../../config/cellhook.toml");
const SMALL: &str = r#"
[datastores.trips]

[triggers.bill_rider]
source = "trips"

[triggers.bill_rider.handler]
kind = "log"
"#;

struct Files {
    dir: TempDir,
}

impl Files {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("c.toml"), text).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("c.toml")
    }

    fn load(&self, variables: &[(&str, &str)]) -> Result<Config, String> {
        let environment = Environment::new(variables.iter().copied());
        load(Some(&self.path()), &environment)
            .map_err(|error| error.to_string().replace(&self.path().display().to_string(), "c.toml"))
    }
}

fn loaded(text: &str) -> Result<Config, String> {
    Files::with(text).load(&[])
}

fn overridden(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    Files::with(text).load(variables)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn a_small_file_has_the_defaults_of_its_store() {
    let config = loaded(SMALL).unwrap();
    assert_eq!(config.group, name("default"));
    assert_eq!(config.datastores[&name("trips")], Datastore { shards: 64, retention: None });
    assert_eq!(config.checkpoint_interval, Duration::from_secs(1));
    assert_eq!(config.lease.membership, Duration::from_millis(200));
    assert_eq!(config.metrics, Some(Listen::default()));
    let far = overridden(SMALL, &[("CELLHOOK_STORE__KIND", "dynamodb")]).unwrap();
    assert_eq!(far.checkpoint_interval, Duration::from_secs(5));
    assert_eq!(far.lease.membership, far.lease.heartbeat);
    assert_eq!(far.poll, tail::Config { floor: Duration::from_millis(200), ceiling: Duration::from_secs(2) });
}

#[test]
fn what_is_wrong_is_told_with_line_key_and_suggestion() {
    let cases = [
        ("[store]\nknd = 1\n", "c.toml:2: store.knd: unknown key `knd`; did you mean `kind`?"),
        ("\n[stor]\n", "c.toml:2: stor: unknown key `stor`; did you mean `store`?"),
        ("group = \"a-b\"\n", "c.toml:1: group: \"a-b\" is not a name"),
        ("[worker]\nheartbeat = 3\n", "c.toml:2: worker.heartbeat: invalid type: integer `3`, expected a string"),
        ("[worker]\nheartbeat = \"3\"\n", "c.toml:2: worker.heartbeat: \"3\" is no duration"),
        ("[worker]\n\nsession = \"5s\"\n", "c.toml:3: worker.session: \"5s\" is under three heartbeats (\"9s\")"),
        ("[worker]\nmemory = \"1MB\"\n", "c.toml:2: worker.memory: \"1MB\" is out of range"),
        ("[worker]\nheight = 1\n", "c.toml:2: worker.height: unknown key `height`"),
        ("[worker]\nweight = 0\n", "c.toml:2: worker.weight: 0 gives it no shard"),
        ("[datastores.trips]\nshards = 0\n", "c.toml:2: datastores.trips.shards: 0 is out of range"),
        (
            "[datastores.trips]\nretention = \"59min\"\n",
            "c.toml:2: datastores.trips.retention: \"59min\" is out of range; it must be \"1h\" to \"3650d\"",
        ),
        ("[datastores.Trips]\n", "c.toml:1: datastores.Trips: \"Trips\" is not a name"),
        ("[metrics]\nlisten = \"9464\"\n", "c.toml:2: metrics.listen: \"9464\" is no address and port"),
        ("[log]\nlevel = \"cellhook=loud\"\n", "c.toml:2: log.level: \"cellhook=loud\" is no level"),
        ("[poll]\nfloor = \"1s\"\nceiling = \"1ms\"\n", "c.toml:3: poll.ceiling: \"1ms\" is under the floor"),
        ("group = \n", "c.toml:1: "),
        ("a = 1\n\n[[[\n", "c.toml:3: "),
        ("group = \"a\"\ngroup = \"b\"\n", "c.toml:2: duplicate key"),
        ("[triggers.t]\ncolumns = []\nhandler = { kind = \"log\" }\n", "c.toml:1: triggers.t: key `source` is missing"),
        ("[triggers.t]\nsource = \"trips\"\n", "c.toml:1: triggers.t: key `handler` is missing"),
        (
            "[triggers.t]\nsource = \"trips\"\nhandler = { kind = \"log\" }\n",
            "c.toml:2: triggers.t.source: \"trips\" is no datastore: the file has none; write [datastores.trips]",
        ),
        (
            "[datastores.trip]\n[triggers.t]\nsource = \"trips\"\nhandler = { kind = \"log\" }\n",
            "c.toml:3: triggers.t.source: \"trips\" is no datastore of this file; it has trip",
        ),
        (
            "[triggers.t]\nsource = \"trips\"\n[triggers.t.handler]\nkind = \"exce\"\ncommand = []\n",
            "unknown value `exce`; did you mean `exec`?",
        ),
        (
            "[triggers.t]\nsource = \"trips\"\n[triggers.t.handler]\nkind = \"exec\"\n\ncomand = [\"x\"]\n",
            "c.toml:6: triggers.t.handler.comand: unknown key `comand`; did you mean `command`?",
        ),
        (
            "[datastores.a]\n[triggers.t]\nsource = \"a\"\n[triggers.t.handler]\nkind = \"cells\"\ndatastore = \"b\"\n",
            "c.toml:6: triggers.t.handler.datastore: \"b\" is no datastore of this file; it has a",
        ),
        (
            "[datastores.a]\n[triggers.t]\nsource = \"a\"\n[triggers.t.handler]\nkind = \"exec\"\ncommand = []\n",
            "c.toml:4: triggers.t.handler: command is empty",
        ),
        (
            "[datastores.a]\n[triggers.t]\nsource = \"a\"\nhandler = { kind = \"log\" }\nfilter = \"data. >\"\n",
            "c.toml:5: triggers.t.filter: line 1",
        ),
        ("[triggers.t]\nmode = \"live\"\n", "c.toml:2: triggers.t.mode: unknown key `mode`"),
        (
            "[triggers.t.window]\ncells = 1\ncell = 1\n",
            "c.toml:3: triggers.t.window.cell: unknown key `cell`; did you mean",
        ),
        ("[triggers.t]\nbreaker = { failure = 1 }\n", "c.toml:2: triggers.t.breaker.failure: unknown key `failure`"),
        ("[triggers.t]\nrate = \"5\"\n", "c.toml:2: triggers.t.rate: \"5\" is no rate"),
        ("[triggers.t]\nstart = { x = 1 }\n", "c.toml:2: triggers.t.start: \"x\" is no number of a shard"),
        (
            "[datastores.a]\n[triggers.t]\nsource = \"a\"\nhandler = { kind = \"log\" }\nstart = { 0 = 18446744073709551615 }\n",
            "c.toml:5: triggers.t.start.0: 18446744073709551615 is out of range; it must be 0 to 9223372036854775807",
        ),
        (
            "[datastores.a]\nshards = 8\n[triggers.t]\nsource = \"a\"\nhandler = { kind = \"log\" }\n[triggers.t.start]\n7 = 1\n8 = 1\n",
            "c.toml:8: triggers.t.start.8: a has no shard 8; its shards are 0 to 7",
        ),
    ];
    for (text, told) in cases {
        let error = loaded(text).unwrap_err();
        assert!(error.contains(told), "{text:?} was told as\n  {error}\nand not as\n  {told}");
    }
}

#[test]
fn the_environment_overrides_the_file_by_the_type_of_each_key() {
    let config = overridden(
        SMALL,
        &[
            ("CELLHOOK_GROUP", "other"),
            ("CELLHOOK_STORE__TABLE_PREFIX", "123"),
            ("CELLHOOK_DATASTORES__TRIPS__SHARDS", "8"),
            ("CELLHOOK_DATASTORES__TRIPS__RETENTION", "30d"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__TIMEOUT", "5s"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__COLUMNS", "[\"BASE\", \"NOTE\"]"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__WINDOW__CELLS", "16"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__BREAKER", "off"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__START", "{ 3 = 4 }"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__HANDLER__KIND", "exec"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__HANDLER__COMMAND", "[\"true\"]"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__HANDLER__CHILDREN", "3"),
            ("CELLHOOK_TRIGGERS__BILL_RIDER__HANDLER__ENV__API__Key", "7"),
            ("CELLHOOK_EVENT_ID", "given to a child, no key"),
            ("CELLHOOKS", "another program's"),
        ],
    );
    let config = config.unwrap();
    assert_eq!(config.group, name("other"));
    assert_eq!(config.store.table_prefix, "123", "text where text is wanted");
    let retention = Some(Duration::from_hours(30 * 24));
    assert_eq!(config.datastores[&name("trips")], Datastore { shards: 8, retention });
    let trigger = &config.triggers[&name("bill_rider")];
    assert_eq!(trigger.timeout, Duration::from_secs(5));
    assert_eq!(trigger.columns, ["BASE", "NOTE"]);
    assert_eq!(trigger.window.cells, 16);
    assert_eq!(trigger.breaker, None);
    assert_eq!(trigger.start, Start::Added(BTreeMap::from([(ShardId(3), crate::cell::AddedId(4))])));
    let text = config.effective();
    assert!(text.contains("retention = \"30d\""), "{text}");
    assert!(text.contains("children = 3") && text.contains("API__Key = \"***\""), "{text}");
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    let cases = [
        (
            "CELLHOOK_GRUOP",
            "a",
            "environment variable CELLHOOK_GRUOP: gruop: unknown key `gruop`; did you mean `group`?",
        ),
        ("CELLHOOK_GROUP__X", "a", "environment variable CELLHOOK_GROUP__X: group: it is set to a plain value"),
        (
            "CELLHOOK_DATASTORES__TRIPS__SHARDS",
            "many",
            "environment variable CELLHOOK_DATASTORES__TRIPS__SHARDS: datastores.trips.shards: invalid type: string \"many\"",
        ),
        (
            "CELLHOOK_DATASTORES__TRIPS__SHARDS",
            "0",
            "environment variable CELLHOOK_DATASTORES__TRIPS__SHARDS: datastores.trips.shards: 0 is out of range",
        ),
        (
            "CELLHOOK_TRIGGERS__BILL_RIDER__TIMOUT",
            "1s",
            "environment variable CELLHOOK_TRIGGERS__BILL_RIDER__TIMOUT: triggers.bill_rider.timout: unknown key `timout`; did you mean `timeout`?",
        ),
        (
            "CELLHOOK_WORKER__HEARTBEAT",
            "7",
            "environment variable CELLHOOK_WORKER__HEARTBEAT: worker.heartbeat: \"7\" is no duration",
        ),
    ];
    for (variable, value, told) in cases {
        let text = format!("group = \"a\"\n{SMALL}");
        let error = overridden(&text, &[(variable, value)]).unwrap_err();
        assert!(error.contains(told), "{error}\nand not\n{told}");
    }
}

#[test]
fn paths_are_relative_to_the_file_and_a_service_has_its_state_directory() {
    let text = format!("{SMALL}\n[store]\nkind = \"embedded\"\n");
    let files = Files::with(&text);
    assert_eq!(files.load(&[]).unwrap().store.path, files.dir.path().join("cellhook.db"));
    let text = format!("{SMALL}\n[store]\nkind = \"embedded\"\npath = \"/somewhere/x.db\"\n");
    assert_eq!(loaded(&text).unwrap().store.path, Path::new("/somewhere/x.db"));
    let text = format!("{SMALL}\n[store]\nkind = \"embedded\"\npath = \"x.db\"\n");
    let config = overridden(&text, &[("STATE_DIRECTORY", "/var/lib/cellhook:/var/lib/other")]).unwrap();
    assert_eq!(config.store.path, Path::new("/var/lib/cellhook/x.db"));
    assert!(config.metrics.unwrap().fixed, "a service does not wander to another port");

    for service in [("INVOCATION_ID", "0123"), ("NOTIFY_SOCKET", "/run/systemd/notify")] {
        let error = overridden(SMALL, &[service]).unwrap_err();
        assert!(error.contains("store.kind: a service says which store it means"), "{error}");
    }
    let in_a_terminal = [("INVOCATION_ID", "0123"), ("SYSTEMD_EXEC_PID", "1")];
    assert!(overridden(SMALL, &in_a_terminal).is_ok());
}

#[test]
fn a_missing_file_tells_where_it_was_looked_for() {
    let environment = Environment::new([("CELLHOOK_CONFIG", "/nowhere/c.toml")]);
    let error = load(None, &environment).unwrap_err();
    assert_eq!(error.to_string(), "config file /nowhere/c.toml cannot be read");
    let error = load(Some(Path::new("/no/d.toml")), &environment).unwrap_err();
    assert_eq!(error.to_string(), "config file /no/d.toml cannot be read");
    let error = load(Some(Path::new("/")), &environment).unwrap_err();
    assert_eq!(error.to_string(), "config file / cannot be read");
    let looked = vec![PathBuf::from("./a"), PathBuf::from("/b")];
    assert!(ConfigError::NotFound { looked }.to_string().contains("looked for ./a, /b; write one"));
}

#[test]
fn the_effective_config_loads_as_the_same() {
    let rich = r#"
group = "night"
[datastores.trips]
shards = 7
[datastores.copies]
[worker]
heartbeat = "500ms"
session = "1500ms"
[metrics]
listen = "off"
per_shard = true
[triggers.a]
source = "trips"
columns = ["A"]
filter = "data.column == \"A\""
start = 2026-01-01T00:00:00Z
order = "shard"
rate = "30/min"
retry = { attempts = 4 }
breaker = "off"
handler = { kind = "log" }
[triggers.b]
source = "copies"
batch = 20
linger = "20ms"
start = { 1 = 5 }
[triggers.b.handler]
kind = "exec"
command = ["true"]
dir = "sub"
"#;
    for text in [SMALL, rich, FIRST_RUN] {
        let config = loaded(text).unwrap();
        let again = Files::with(&config.effective());
        let again = Config { file: config.file.clone(), ..again.load(&[]).unwrap() };
        assert_eq!(again, config, "{}", config.effective());
    }
    assert_eq!(loaded(rich).unwrap().triggers[&name("a")].order, Order::Shard);
}

/// Whatever is wrong with a handler's `env`, its values are not told.
#[test]
fn no_error_prints_a_secret() {
    let exec = |env: &str| format!("{SMALL}command = [\"true\"]\n{env}\n").replace("\"log\"", "\"exec\"");
    let key = "triggers.bill_rider.handler.env";
    for (env, told) in [
        ("env = { PIN = 123456 }", format!("c.toml:10: {key}.PIN: a variable is text")),
        ("env = { PIN = [123456] }", format!("c.toml:10: {key}.PIN: a variable is text")),
        ("[triggers.bill_rider.handler.env]\nPIN = 123456", format!("c.toml:11: {key}.PIN: a variable is text")),
        ("env = \"PIN=123456\"", format!("c.toml:10: {key}: it is a table of variables")),
        ("env = [\"123456\"]", format!("c.toml:10: {key}: it is a table of variables")),
    ] {
        let error = loaded(&exec(env)).unwrap_err();
        assert!(error.contains(&told) && !error.contains("123456"), "{env}: {error}");
    }
    let error = loaded("[triggers.t]\nhandler = \"123456\"\n").unwrap_err();
    assert!(error.starts_with("c.toml:2: triggers.t") && !error.contains("123456"), "{error}");
    for (variable, value, told) in [
        ("__HANDLER__ENV", "{ PIN = 123456 }", format!("{key}.PIN: a variable is text")),
        ("__HANDLER__ENV", "123456", format!("{key}: it is a table of variables")),
        ("__HANDLER__ENV", "{ PIN = \"123456\"", format!("{key}: it is a table of variables")),
        (
            "__HANDLER",
            "{ kind = \"exec\", command = [\"a\"], env = { PIN = 123456 } }",
            format!("{key}.PIN: a variable"),
        ),
        (
            "__HANDLER",
            "{ kind = \"exec\", env = { PIN = \"123456\"",
            "triggers.bill_rider.handler: invalid type".into(),
        ),
        ("", "{ handler = { env = { PIN = \"123456, expected \"", "triggers.bill_rider: invalid type".into()),
    ] {
        let variable = format!("CELLHOOK_TRIGGERS__BILL_RIDER{variable}");
        let error = overridden(SMALL, &[(&variable, value)]).unwrap_err();
        let told = format!("environment variable {variable}: {told}");
        assert!(error.contains(&told) && !error.contains("123456"), "{variable}={value}: {error}");
    }
}

/// In a pod, Kubernetes sets variables for each service of the namespace, and one of them is likely called `cellhook`.
#[test]
fn service_links_of_kubernetes_are_no_keys() {
    let links = [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_METRICS",
        "PORT",
        "PORT_9464_TCP",
        "PORT_9464_TCP_PROTO",
        "PORT_9464_TCP_PORT",
        "PORT_53_UDP_ADDR",
        "METRICS_SERVICE_HOST",
        "METRICS_PORT_9464_TCP_ADDR",
    ];
    let links = links.map(|link| format!("CELLHOOK_{link}"));
    let variables: Vec<(&str, &str)> = links.iter().map(|link| (link.as_str(), "tcp://10.0.0.1:9464")).collect();
    assert_eq!(overridden(SMALL, &variables).map(|config| config.group), Ok(name("default")));
    for other in ["PORT_X_TCP", "PORT_9464", "PORT_9464_TCP_HOST", "SERVICE", "SERVICE_HOSTS", "METRICS__PORT", "PORTS"]
    {
        let error = overridden(SMALL, &[(&format!("CELLHOOK_{other}"), "a")]).unwrap_err();
        assert!(error.contains("unknown key"), "{other}: {error}");
    }
}

#[test]
fn secrets_of_children_are_not_printed() {
    let text = format!("{SMALL}env = {{ TOKEN = \"s3cret\" }}\ncommand = [\"true\"]\n").replace("\"log\"", "\"exec\"");
    let effective = loaded(&text).unwrap().effective();
    assert!(effective.contains("TOKEN = \"***\"") && !effective.contains("s3cret"), "{effective}");
}

/// The first-run file with its commented keys switched on: the defaults, or the examples.
fn uncommented(keep: impl Fn(&str, bool) -> bool) -> String {
    let mut text = String::new();
    for line in FIRST_RUN.lines() {
        let key = line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        match key {
            Some(key) if keep(key, key.contains("# e.g.")) => text.push_str(key),
            Some(_) => {}
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_first_run_file_tells_the_defaults() {
    let files = Files::with(FIRST_RUN);
    let plain = files.load(&[]).unwrap();
    fs::write(files.path(), uncommented(|_, example| !example)).unwrap();
    let written = files.load(&[]).unwrap();
    assert_eq!(written.metrics.map(|listen| listen.address), plain.metrics.map(|listen| listen.address));
    assert_eq!(Config { metrics: plain.metrics, ..written }, plain, "a commented key is not the default");
}

#[test]
fn each_example_of_the_first_run_file_can_be_switched_on() {
    let examples: Vec<&str> =
        FIRST_RUN.lines().filter(|line| line.starts_with('#') && line.contains("# e.g.")).collect();
    assert!(examples.len() > 4, "{examples:?}");
    for example in examples {
        let text = uncommented(|key, _| example.strip_prefix('#') == Some(key));
        assert!(loaded(&text).is_ok(), "{example}: {:?}", loaded(&text));
    }
}

#[test]
fn the_first_run_file_names_every_key() {
    fn keys(table: &toml::Table, path: &str, found: &mut BTreeSet<String>) {
        for (key, value) in table {
            let path = format!("{path}.{key}");
            match value {
                toml::Value::Table(inner) if !inner.is_empty() => keys(inner, &path, found),
                _ => drop(found.insert(path)),
            }
        }
    }
    let mut known = BTreeSet::new();
    keys(&toml::from_str(&loaded(FIRST_RUN).unwrap().effective()).unwrap(), "", &mut known);
    for left_out in ["store.endpoint", "store.region", "store.profile", "datastores.trips.retention", "metrics.listen"]
    {
        known.insert(format!(".{left_out}"));
    }
    for left_out in ["filter", "rate"] {
        known.insert(format!(".triggers.bill_rider.{left_out}"));
    }
    let mut written = BTreeSet::new();
    let twice = "#retry = { attempts";
    let all = uncommented(|key, _| !format!("#{key}").starts_with(twice));
    keys(&toml::from_str(&all).unwrap(), "", &mut written);
    known.remove(".metrics");
    assert_eq!(written, known);
}

#[test]
fn a_reload_tells_what_it_cannot_change() {
    let old = loaded(SMALL).unwrap();
    let new =
        loaded(&format!("group = \"b\"\n{SMALL}columns = []\n[log]\nlevel = \"warn\"\n").replace("columns = []\n", ""));
    let new = Config { store: old.store.clone(), ..new.unwrap() };
    assert_eq!(old.changed_beside_triggers(&new), ["group", "[log]"]);
    assert_eq!(old.changed_beside_triggers(&old), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let files = Files::with("");
        fs::write(files.path(), bytes).unwrap();
        let _ = files.load(&[]);
    }

    #[test]
    fn no_change_of_a_good_file_panics(
        at in 0..FIRST_RUN.len(),
        cut in 0_usize..12,
        with in "[\\[\\]{}=\"'#.,a-z0-9_\n-]{0,6}",
        variable in "CELLHOOK_[A-Z_]{0,20}",
        value in "[\\[\\]{}=\"'a-z0-9]{0,8}",
    ) {
        let text = uncommented(|key, example| !example && !key.starts_with("retry = { attempts"));
        let mut bytes = text.into_bytes();
        let end = (at + cut).min(bytes.len());
        let at = at.min(end);
        bytes.splice(at..end, with.bytes());
        let files = Files::with("");
        fs::write(files.path(), bytes).unwrap();
        let _ = files.load(&[(&variable, &value)]);
    }
}
