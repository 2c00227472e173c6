//! Files and environments that were made to hurt: whatever is written there is refused with its place, or loads, and what
//! loads says what it says when it is printed and loaded again.

use super::*;
use crate::cell::hostile;
use proptest::prelude::*;
use std::fs;

const FIRST_RUN: &str = include_str!("../../config/cellhook.toml");

/// A file with most keys.
const FULL: &str = r#"
group = "g"
[store]
kind = "dynamodb"
region = "eu-central-1"
[datastores.trips]
shards = 8
retention = "30d"
[worker]
memory = "64MB"
[metrics]
listen = "127.0.0.1:9464"
[triggers.bill_rider]
source = "trips"
columns = ["BASE"]
filter = "data.body.fare > 0.0"
start = { "3" = 17 }
retry = { attempts = 3, min = "1s" }
handler = { kind = "exec", command = ["cat", "-"], env = { HOME = "/" } }
"#;

/// The config, or what is told of what is wrong; in a file that is called `c.toml`.
fn load_bytes(bytes: &[u8], variables: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, bytes).unwrap();
    let loaded = load(Some(&path), &Environment::new(variables.iter().copied()));
    loaded.map_err(|error| error.to_string().replace(&path.display().to_string(), "c.toml"))
}

/// Without the path of the store, which is relative to the file.
fn printed(config: &Config) -> String {
    config.effective().lines().filter(|line| !line.starts_with("path = ")).collect::<Vec<_>>().join("\n")
}

/// What every outcome must be.
fn stands(loaded: Result<Config, String>) -> Result<(), TestCaseError> {
    match loaded {
        Err(told) => {
            let places = ["c.toml: ", "c.toml:", "environment variable CELLHOOK_", "config file c.toml cannot be read"];
            prop_assert!(places.iter().any(|place| told.starts_with(place)), "{told}");
        }
        Ok(config) => {
            let again = load_bytes(config.effective().as_bytes(), &[]);
            prop_assert_eq!(again.map(|again| printed(&again)), Ok(printed(&config)));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_changed_file_is_refused_with_its_place_or_loads(first_run: bool, changes in hostile::changes()) {
        let good = if first_run { FIRST_RUN } else { FULL };
        stands(load_bytes(&hostile::changed(good.as_bytes(), &changes), &[]))?;
    }

    #[test]
    fn a_changed_variable_is_refused_with_its_name_or_counts(
        key in "GROUP|STORE(__KIND)?|WORKER__MEMORY|DATASTORES__TRIPS__SHARDS|TRIGGERS__BILL_RIDER(__(HANDLER|RETRY|START|FILTER|RATE))?(__[A-Z_]{0,9})?",
        good in prop::sample::select(vec!["3", "\"3\"", "{ attempts = 3 }", "[1]", "10s", "{ kind = \"log\" }", "1979-05-27"]),
        changes in hostile::changes(),
    ) {
        let value = String::from_utf8_lossy(&hostile::changed(good.as_bytes(), &changes)).into_owned();
        stands(load_bytes(FULL.as_bytes(), &[(&format!("CELLHOOK_{key}"), &value)]))?;
    }
}

/// Tables in tables, by brackets, by dots and by both: the parser bounds each, and so what is walked by recursion.
#[test]
fn depth_is_refused() {
    let dotted = |n: usize| vec!["a"; n].join(".");
    let nested = |n: usize, key: &str| format!("{}1{}", format!("{key} = {{ ").repeat(n), " }".repeat(n));
    for text in [
        format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        nested(30_000, "a"),
        format!("\n{} = 1", dotted(200_000)),
        format!("[{}]", dotted(200_000)),
        format!("[{}]\n{}", dotted(79), nested(79, &dotted(79))),
    ] {
        let told = load_bytes(text.as_bytes(), &[]).unwrap_err();
        assert!(told.starts_with("c.toml"), "{told}");
    }
    let told = load_bytes(&vec![b'#'; (1 << 20) + 1], &[]).unwrap_err();
    assert!(told.contains("config file c.toml cannot be read"), "{told}");
}

/// The name of a variable is a path of any length, and its value is read as the file is.
#[test]
fn a_variable_as_deep_as_its_name_allows_is_refused() {
    let brackets = format!("{}1{}", "[".repeat(60_000), "]".repeat(60_000));
    for (deep, value) in [(10, "1"), (16, "1"), (40_000, "1"), (40_000, "{ a = 1 }"), (3, &*brackets)] {
        let variable = format!("CELLHOOK_WORKER{}", "__A".repeat(deep));
        let told = load_bytes(FULL.as_bytes(), &[(&variable, value)]).unwrap_err();
        assert!(told.starts_with("environment variable CELLHOOK_WORKER__A"), "{deep}");
        assert_eq!(told.contains("no key has more than 16"), deep >= 16, "{deep}");
    }
}
