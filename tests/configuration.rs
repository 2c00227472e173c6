//! `docs/configuration.md` is held to the code, both ways: each key, each default, each range and what SIGHUP takes over. What is
//! tried is read from the page's own tables.

use cellhook::{
    cell::setting::{duration, size},
    config::{Config, Environment, load},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};
use toml::Value;

const PAGE: &str = include_str!("../docs/configuration.md");
/// No key of ours is near this one.
const UNKNOWN: &str = "zzzzzzzzzzzz";

/// A row of the page.
#[derive(Clone, Debug)]
struct Row {
    /// From the top of the file, with `NAME` for a name.
    path: String,
    /// Of a handler's own keys: its kind.
    handler: Option<String>,
    kind: String,
    /// On the embedded store, and on DynamoDB.
    defaults: [String; 2],
    range: String,
    sighup: bool,
}

/// The text without its marks of code.
fn bare(text: &str) -> String {
    text.replace('`', "").trim().to_owned()
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut table, mut handler) = (String::new(), None);
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let name = heading.split(['[', ']']).nth(1);
            table = name.map_or_else(String::new, |name| format!("{name}."));
            handler = heading.split("of kind ").nth(1).map(bare);
        }
        let Some(cells) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = cells.split(" | ").flat_map(|cell| cell.split("| ")).map(str::trim).collect();
        let [key, kind, default, range, sighup, about] = cells[..] else { panic!("{line}: {cells:?}") };
        assert!(about.trim_end_matches(" |").len() > 10, "{line}");
        let (embedded, dynamodb) = default.split_once("; dynamodb:").unwrap_or((default, default));
        rows.push(Row {
            path: format!("{table}{}", bare(key)),
            handler: handler.clone(),
            kind: kind.to_owned(),
            defaults: [bare(embedded), bare(dynamodb)],
            range: bare(range),
            sighup: match sighup {
                "yes" => true,
                "no" => false,
                other => panic!("{line}: {other}"),
            },
        });
    }
    assert!(rows.len() > 50, "the tables are found");
    rows
}

/// A file with one datastore and one trigger of a kind of handler, in which some keys are set or taken away.
#[derive(Clone)]
struct File(toml::Table);

impl File {
    fn of(handler: &str) -> Self {
        let handler = match handler {
            "exec" | "command" => format!("kind = '{handler}'\ncommand = ['true']"),
            "cells" => "kind = 'cells'\ndatastore = 'NAME'".into(),
            other => format!("kind = '{other}'"),
        };
        let text = format!("[datastores.NAME]\n[triggers.NAME]\nsource = 'NAME'\n[triggers.NAME.handler]\n{handler}\n");
        Self(toml::from_str(&text.replace("NAME", "name")).unwrap())
    }

    fn for_row(row: &Row) -> Self {
        Self::of(row.handler.as_deref().unwrap_or("log"))
    }

    fn with(mut self, path: &str, value: impl Into<Value>) -> Self {
        let path = path.replace("NAME", "name");
        let mut keys: Vec<&str> = path.split('.').collect();
        let last = keys.pop().unwrap();
        let mut table = &mut self.0;
        for key in keys {
            table = table.entry(key).or_insert(Value::Table(toml::Table::new())).as_table_mut().unwrap();
        }
        table.insert(last.into(), value.into());
        self
    }

    fn load(&self) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, toml::to_string(&self.0).unwrap()).unwrap();
        let loaded = load(Some(&path), &Environment::new([("", ""); 0]));
        loaded.map(|config| Config { file: "c.toml".into(), ..config }).map_err(|error| error.to_string())
    }
}

/// The keys that the code knows in a table: what it answers to one that it does not know.
fn known(table: &str, handler: &str) -> BTreeSet<String> {
    let key = if table.is_empty() { UNKNOWN.to_owned() } else { format!("{table}.{UNKNOWN}") };
    let told = File::of(handler).with(&key, 1).load().unwrap_err();
    let list = told.split_once("known here: ").unwrap_or_else(|| panic!("{key}: {told}")).1;
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_page_has_every_key_and_no_other() {
    let rows = rows();
    // What the page says of each table: its keys, and the tables in it.
    let mut tables: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for row in &rows {
        let handlers: Vec<String> = match &row.handler {
            Some(kind) => vec![kind.clone()],
            None => vec!["log".to_owned()],
        };
        for handler in handlers {
            let mut path = row.path.as_str();
            loop {
                let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
                tables.entry((table.to_owned(), handler.clone())).or_default().insert(key.to_owned());
                if table.is_empty() {
                    break;
                }
                path = table;
            }
        }
    }
    let mut compared = 0;
    for ((table, handler), mut page) in tables {
        // The tables above a handler's own are compared once, with the keys of all kinds.
        if (handler != "log" && table != "triggers.NAME.handler") || page.contains("NAME") {
            continue;
        }
        let code = known(&table, &handler);
        // `kind` says which keys there are, and is none of them.
        if table == "triggers.NAME.handler" {
            page.remove("kind");
        }
        assert_eq!(page, code, "[{table}], kind {handler}");
        compared += 1;
    }
    assert!(compared >= 16, "{compared} tables");
    let told = File::of("log").with("triggers.NAME.handler.kind", UNKNOWN).load().unwrap_err();
    let kinds: BTreeSet<&str> = told.split_once("known here: ").unwrap().1.split(", ").collect();
    let page: BTreeSet<&str> = rows.iter().filter_map(|row| row.handler.as_deref()).collect();
    assert_eq!(page, kinds);
}

/// A value as the page writes it.
fn shown(path: &str, value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(text) if path == "store.path" => text.rsplit('/').next().unwrap().into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn flatten(table: &toml::Table, above: &str, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if key == "name" { "NAME" } else { key };
        let path = if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(inner, &path, found),
            _ => drop(found.insert(path.clone(), shown(&path, value))),
        }
    }
}

#[test]
fn the_defaults_are_those_of_the_page() {
    let rows = rows();
    for (store, kind) in ["embedded", "dynamodb"].into_iter().enumerate() {
        for handler in ["exec", "command", "cells", "log"] {
            let file = File::of(handler);
            let file = if kind == "embedded" { file } else { file.with("store.kind", kind) };
            let effective = file.load().unwrap().effective();
            let mut code = BTreeMap::new();
            flatten(&toml::from_str(&effective).unwrap(), "", &mut code);
            // The one default that is printed as a remark, because the port that is taken may be another one.
            let listen = effective.split("# listen = \"").nth(1).unwrap().split('"').next().unwrap();
            code.remove("metrics");
            code.insert("metrics.listen".into(), listen.to_owned());
            let of_handler = |row: &&Row| row.handler.as_deref().is_none_or(|of| of == handler);
            let mut page = BTreeMap::new();
            for row in rows.iter().filter(of_handler) {
                match row.defaults[store].as_str() {
                    "none" => {}
                    "required" => drop(code.remove(&row.path).unwrap_or_else(|| panic!("{row:?}"))),
                    default => drop(page.insert(row.path.clone(), default.to_owned())),
                }
            }
            if kind == "dynamodb" {
                // Written here, and so no default; and the file of the embedded store means nothing there.
                code.insert("store.kind".into(), "embedded".into());
                code.remove("store.path");
            }
            assert_eq!(page, code, "{kind}, handler {handler}");
        }
    }
    for row in rows.iter().filter(|row| row.defaults[0] == "required") {
        let mut file = File::for_row(row).0;
        let path = row.path.replace("NAME", "name");
        let mut keys: Vec<&str> = path.split('.').collect();
        let last = keys.pop().unwrap();
        let table = keys.into_iter().fold(&mut file, |table, key| table[key].as_table_mut().unwrap());
        table.remove(last).unwrap();
        let told = File(file).load().unwrap_err();
        assert!(told.contains(last), "{row:?} is required: {told}");
    }
}

/// A value of a kind that is a number at heart: what TOML has for it, and its neighbours.
fn numeric(kind: &str, at: i128) -> Value {
    let unsigned = || u64::try_from(at).ok();
    match (kind, unsigned()) {
        ("integer", _) => i64::try_from(at).unwrap().into(),
        ("duration", Some(nanos)) => duration::text(Duration::from_nanos(nanos)).into(),
        ("duration", None) => "-1ns".into(),
        ("size", Some(bytes)) => format!("{bytes}B").into(),
        ("list", Some(entries)) => (0..entries).map(|n| format!("C{n}")).collect::<Vec<_>>().into(),
        _ => panic!("{kind} has no range"),
    }
}

fn number(kind: &str, text: &str) -> i128 {
    match kind {
        "duration" => duration::parse(text).unwrap().as_nanos().try_into().unwrap(),
        "size" => size::parse(text).unwrap().into(),
        "integer" => text.parse().unwrap(),
        "list" => text.trim_end_matches(" columns").parse().unwrap(),
        other => panic!("{other} has no range"),
    }
}

/// The end of a range: a value, or a multiple of another key's, which then is set to a value that leaves room.
fn end(row: &Row, text: &str) -> i128 {
    let (times, text) = text.split_once(" × ").map_or((1, text), |(times, key)| (times.parse().unwrap(), key));
    let above = row.path.rsplit_once('.').map_or("", |(above, _)| above.trim_end_matches(".retry"));
    let other = rows().into_iter().find(|other| other.path == format!("{above}.{text}"));
    times * number(&row.kind, other.as_ref().map_or(text, |other| &other.defaults[0]))
}

/// A file in which every value of the key's range can be: other keys are set so that they are not in its way.
fn with_room(row: &Row) -> File {
    let file = File::for_row(row);
    match row.path.as_str() {
        "worker.heartbeat" => file.with("worker.session", "1h"),
        "poll.floor" => file.with("poll.ceiling", "1min"),
        "triggers.NAME.retry.min" => file.with("triggers.NAME.retry.max", "7d"),
        _ => file,
    }
}

/// Values at the ends of a range, and beyond them.
fn ends(row: &Row) -> Option<([Value; 2], [Value; 2])> {
    let (least, most) = row.range.split_once(" to ")?;
    let (least, most) = (end(row, least), end(row, most));
    let value = |at| numeric(&row.kind, at);
    let below = if row.kind == "list" { Value::from(-1) } else { value(least - 1) };
    Some(([value(least), value(most)], [below, value(most + 1)]))
}

#[test]
fn the_ranges_are_those_of_the_page() {
    let mut tried = 0;
    for row in rows().into_iter().filter(|row| !row.range.is_empty()) {
        let loads = |value: &Value| {
            let file = if row.path.ends_with("handler.kind") {
                File::of(value.as_str().unwrap())
            } else {
                with_room(&row).with(&row.path, value.clone())
            };
            file.load()
        };
        let (inside, outside) = match ends(&row) {
            Some((inside, outside)) => (inside.to_vec(), outside.to_vec()),
            None => (row.range.split(", ").map(Value::from).collect(), vec![UNKNOWN.into(), 1.into()]),
        };
        for value in inside {
            assert!(loads(&value).is_ok(), "{} = {value} is within its range: {:?}", row.path, loads(&value));
            tried += 1;
        }
        for value in outside.iter().filter(|value| value.is_str() || !row.path.ends_with("handler.kind")) {
            let told = loads(value).expect_err(&format!("{} = {value} is out of its range", row.path));
            let key = row.path.rsplit('.').next().unwrap();
            assert!(told.contains(key), "{} = {value} was refused for another reason: {told}", row.path);
        }
    }
    assert!(tried > 50, "{tried}");
}

/// Another value than the default, of a key without a range.
fn other_value(path: &str) -> Value {
    let list = |words: &[&str]| Value::from(words.iter().map(|word| Value::from(*word)).collect::<Vec<_>>());
    match path {
        "group" | "store.table_prefix" | "store.endpoint" | "store.region" | "store.profile" | "store.path" => {
            "x".into()
        }
        "metrics.listen" => "off".into(),
        "log.level" => "warn".into(),
        "metrics.per_shard" => true.into(),
        "triggers.NAME.source" | "triggers.NAME.handler.datastore" => "other".into(),
        "triggers.NAME.filter" => "true".into(),
        "triggers.NAME.start" => "newest".into(),
        "triggers.NAME.rate" => "500/s".into(),
        "triggers.NAME.handler.command" | "triggers.NAME.handler.env_pass" => list(&["x"]),
        "triggers.NAME.handler.dir" => "/x".into(),
        "triggers.NAME.handler.env" => toml::Table::from_iter([("A".to_owned(), "b".into())]).into(),
        "triggers.NAME.handler.body" => true.into(),
        other => panic!("{other} has no range: say another value than its default"),
    }
}

#[test]
fn a_reload_takes_over_what_the_page_says() {
    for row in rows() {
        let before = with_room(&row).with("datastores.other.shards", 1);
        let candidates = match ends(&row) {
            Some((inside, _)) => inside.to_vec(),
            None if row.range.is_empty() => vec![other_value(&row.path)],
            None => row.range.split(", ").map(Value::from).collect(),
        };
        let old = before.load().unwrap();
        let changes = candidates.into_iter().filter_map(|value| {
            let file = match value.as_str() {
                Some(kind) if row.path.ends_with("handler.kind") => File::of(kind).with("datastores.other.shards", 1),
                _ => before.clone().with(&row.path, value),
            };
            // The directory of each file is another one, and so is the store's in it.
            let mut new = file.load().unwrap();
            if row.path != "store.path" {
                new.store.path.clone_from(&old.store.path);
            }
            (new != old).then_some(new)
        });
        let changed: Vec<Config> = changes.collect();
        assert!(!changed.is_empty(), "{}: the page has no second value", row.path);
        for new in changed {
            let restart = old.changed_beside_triggers(&new);
            assert_eq!(restart.is_empty(), row.sighup, "{}: a restart is needed for {restart:?}", row.path);
            assert_eq!(new.triggers != old.triggers, row.sighup, "{}", row.path);
        }
    }
}
