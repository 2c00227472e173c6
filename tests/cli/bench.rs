//! `bench` measures and cleans up. What the figures come to depends on the machine; that they are there does not.

use super::home::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Little of everything, in a directory.
fn small<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let little = ["bench", "--json", "--cells", "2000", "--shards", "6", "--many", "16", "--trials", "2", "--dir"];
    [&little[..], &[dir.to_str().unwrap()], more].concat()
}

/// A directory for it.
fn place(home: &Home) -> PathBuf {
    let place = home.path("place");
    fs::create_dir_all(&place).unwrap();
    place
}

/// What lies in a directory, if there is one.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

/// Processes that were started with a place in a directory: not the bench itself, which was started with the directory.
fn processes(dir: &Path) -> usize {
    let place = format!("{}/cellhook-bench-", dir.display());
    let lines = entries(Path::new("/proc")).into_iter().filter_map(|process| fs::read(process.join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&place)).count()
}

fn number(figure: &Value, key: &str) -> f64 {
    figure[key].as_f64().unwrap_or_else(|| panic!("{key} of {figure}"))
}

/// Rows of the table of what is to be reached come out: for each how many figures, and how many of them have a reach.
fn prints(wanted: &[(&str, usize, usize)]) {
    let home = Home::with("");
    let place = place(&home);
    let only: Vec<&str> = wanted.iter().flat_map(|(name, ..)| ["--only", *name]).collect();
    let words = [&["--seconds", "1", "--session", "3s"], &only[..]].concat();
    let lines = home.run(&small(&place, &words)).done().objects();
    let (machine, figures) = lines.split_first().unwrap();
    assert!(number(machine, "fsync_ms") > 0.0 && number(machine, "cores") >= 1.0, "{machine}");
    let mut found: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for figure in figures {
        assert!(number(figure, "value") >= 0.0, "{figure}");
        // So few cells may take less processor time than the system counts.
        let nothing_to_divide = figure["bench"] == "growth" && (figure["bare"] == 0.0 || figure["value"] == 0.0);
        assert!(figure["bare"].is_null() || nothing_to_divide || number(figure, "ratio") > 0.0, "{figure}");
        assert_eq!(figure["reach"].is_null(), figure["met"].is_null(), "{figure}");
        let (all, with_reach) = found.entry(figure["bench"].as_str().unwrap()).or_default();
        *all += 1;
        *with_reach += usize::from(!figure["reach"].is_null());
    }
    assert_eq!(found, wanted.iter().map(|(name, all, with_reach)| (*name, (*all, *with_reach))).collect());
    assert_eq!(entries(&place).len(), 0, "it leaves nothing behind");
}

#[test]
fn what_it_takes_to_append_and_to_call_is_measured() {
    prints(&[
        ("append", 3, 2),
        ("backlog", 1, 1),
        ("catch-up", 1, 1),
        ("exec", 1, 1),
        ("growth", 2, 2),
        ("idle", 4, 1),
        ("latency", 4, 2),
        ("python", 1, 1),
        ("single", 2, 1),
        ("start", 2, 1),
    ]);
}

#[test]
fn several_processes_are_measured() {
    prints(&[("share", 5, 4)]);
}

#[test]
fn a_takeover_is_measured() {
    prints(&[("takeover", 4, 2)]);
}

/// By virtual time, so that they are the same everywhere.
#[test]
fn units_are_counted_for_a_known_load() {
    let home = Home::with("");
    let figures = home.run(&small(&place(&home), &["--only", "cost"])).done().objects();
    assert_eq!(figures.iter().filter(|figure| figure["bench"] == "cost").count(), 10);
    let value = |name: &str, unit: &str| {
        let found = figures.iter().find(|figure| figure["name"] == name && figure["unit"] == unit);
        number(found.unwrap_or_else(|| panic!("{name} in {unit}: {figures:?}")), "value")
    };
    let is = |name, unit, from: f64, to: f64| {
        let value = value(name, unit);
        assert!((from..=to).contains(&value), "{name}: {value} {unit}, not {from} to {to}");
    };
    // Twice: the tip, the segment of less than 1 KB, the cell of less than 2 KB.
    is("append of a cell alone", "write units", 8.0, 8.0);
    // A cell of its own, and its part of a segment that zstd made half as long.
    is("append of a full transaction, a cell", "write units", 4.5, 6.0);
    is("reading a cell of a full segment", "read units", 0.04, 0.08);
    // A heartbeat each three seconds, and nothing else.
    is("control plane, 16 shards, one idle worker", "write units/min", 19.9, 20.1);
    // Sessions each three seconds, and each minute 16 scopes of leases and the triggers.
    is("control plane, 16 shards, one idle worker", "read units/min", 27.0, 31.0);
    // Sixteen buckets each two seconds, each half a unit, and the incarnation each minute.
    is("tips, 16 shards, one idle worker", "read units/min", 230.0, 260.0);
    // A write for each shard and interval of five seconds.
    is("checkpoints, a cell a second in each of 6 shards", "write units/min", 85.0, 110.0);
}

#[test]
fn a_figure_that_nobody_knows_is_a_usage_error_and_the_known_ones_are_told() {
    let home = Home::with("");
    home.run(&["bench", "--only", "nonsense"]).ended(2).says("catch-up").says("takeover");
    home.run(&["bench", "--markdown", "--json"]).ended(2);
}

#[test]
fn what_it_cannot_measure_is_refused_and_nothing_is_made() {
    let home = Home::with("");
    for (option, value) in
        [("--shards", "0"), ("--many", "65537"), ("--trials", "0"), ("--seconds", "0"), ("--cells", "999")]
    {
        home.run(&["bench", option, value]).ended(2).says(&format!("invalid value '{value}' for '{option} <N>'"));
    }
    let place = home.path("none/place");
    home.run(&["bench", "--dir", place.to_str().unwrap()]).ended(2).says("--dir: ").says("No such file or directory");
    assert!(!home.path("none").exists(), "nothing is left behind");
}

#[test]
fn an_interrupted_bench_takes_its_processes_and_files_with_it() {
    for only in ["takeover", "share", "append"] {
        let home = Home::with("");
        let place = place(&home);
        // It would go on for longer than the test waits.
        let words = small(&place, &["--only", only, "--seconds", "600", "--session", "60s"]);
        let child = home.command(&words).spawn().unwrap();
        until(|| if only == "append" { !entries(&place).is_empty() } else { processes(&place) > 0 }).unwrap();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        Ended::of(child).ended(1).says("interrupted by SIGINT");
        assert_eq!(entries(&place).len(), 0, "{only}");
        assert_eq!(processes(&place), 0, "{only}");
    }
}
