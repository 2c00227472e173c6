//! The house rules that a compiler does not check: which room may import which, in which room an outside crate lives, that
//! every file says what it is for, and that none outgrows a sitting.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lowest first. A room may name rooms of lower storeys, never another of its own or one above.
const STOREYS: &[&[&str]] = &[
    &["cell", "metrics"],
    &["store", "checkpoint"],
    &["handler", "filter"],
    &["dispatch", "lease", "tail"],
    &["shard"],
    &["worker", "verify"],
    &["admin", "process"],
    &["config"],
    &["cli"],
];

/// Outside crates, and the only room that may name them.
const HOMES: &[(&str, &str)] = &[
    ("prometheus", "metrics"),
    ("aws_config", "store"),
    ("aws_sdk_dynamodb", "store"),
    ("aws_smithy_runtime_api", "store"),
    ("aws_smithy_types", "store"),
    ("dynoxide", "store"),
    ("zstd", "store"),
    ("cel", "filter"),
    ("axum", "admin"),
    ("signal_hook", "process"),
    ("tracing_subscriber", "process"),
    ("clap", "cli"),
    ("clap_complete", "cli"),
    ("clap_mangen", "cli"),
    ("anyhow", "cli"),
    ("indicatif", "cli"),
];

/// Lines of a file, tests included.
const LINES_MAX: usize = 900;

fn storey(room: &str) -> Option<usize> {
    STOREYS.iter().position(|rooms| rooms.contains(&room))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The rooms that a text names: what follows each `crate::`, brace groups opened.
fn rooms_named(code: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| is_name(*c)).collect::<String>();
    let mut rooms = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        if !rest.starts_with('{') {
            rooms.push(name(rest));
            continue;
        }
        let (mut depth, mut start) = (0, 1);
        for (i, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || c == ',' && depth == 1 {
                rooms.push(name(&rest[start.min(i)..i]));
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

/// Whether code names an outside crate in a path.
fn names_crate(code: &str, krate: &str) -> bool {
    code.match_indices(krate).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let free = before.is_none_or(|c| !is_name(c) && c != ':' && c != '.' && c != '"');
        free && code[at + krate.len()..].starts_with("::")
    })
}

/// The rooms whose time is that of `cell::clock`, so that a simulated worker has a clock of its own.
const ON_THE_CLOCK: &[&str] = &["dispatch", "lease", "tail", "shard", "worker"];
/// Tokio's clock, past it. `worker/minder.rs` counts rounds of its own and compares them with nothing else.
const PAST_THE_CLOCK: &[&str] = &["Instant::now(", "tokio::time::sleep", "tokio::time::timeout", ".elapsed()"];

/// Where a file's code asks tokio for the time instead of `cell::clock`.
fn past_the_clock(room: &str, path: &str, code: &str) -> Option<String> {
    let own = code.split("#[cfg(test)]").next().unwrap_or_default();
    let asks = PAST_THE_CLOCK.iter().find(|way| own.contains(**way))?;
    let exempt = path.ends_with("tests.rs") || path.ends_with("minder.rs");
    (ON_THE_CLOCK.contains(&room) && !exempt).then(|| format!("{path}: `{asks}` is not `cell::clock`"))
}

/// What is wrong with a file.
fn faults(room: &str, path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!("{path}: does not begin by saying what it is for (//!)"));
    }
    if text.lines().count() > LINES_MAX {
        faults.push(format!("{path}: more than {LINES_MAX} lines"));
    }
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    faults.extend(past_the_clock(room, path, &code));
    let Some(own) = storey(room) else {
        if !matches!(room, "lib" | "main") {
            faults.push(format!("{path}: room `{room}` is not on the plan"));
        }
        return faults;
    };
    for named in rooms_named(&code) {
        if named != room && storey(&named).is_some_and(|storey| storey >= own) {
            faults.push(format!("{path}: `{room}` names `{named}`, which is not below it"));
        }
    }
    for (krate, home) in HOMES {
        if *home != room && names_crate(&code, krate) {
            faults.push(format!("{path}: `{krate}` belongs in `{home}`"));
        }
    }
    faults
}

#[test]
fn the_house_is_in_order() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 30, "the files are found");
    let all: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let relative = file.strip_prefix(&src).unwrap();
            let room = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            faults(room.trim_end_matches(".rs"), &relative.display().to_string(), &fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(all.is_empty(), "\n{}\n", all.join("\n"));
}

/// Every import that is in order becomes a fault when it is turned round.
#[test]
fn an_import_that_is_turned_round_is_seen() {
    for (low, rooms) in STOREYS.iter().enumerate() {
        for lower in *rooms {
            for upper in STOREYS[low..].iter().flat_map(|rooms| rooms.iter()).filter(|upper| *upper != lower) {
                let turned = format!("//! x\nuse crate::{upper}::Thing;");
                assert_eq!(faults(lower, "x.rs", &turned).len(), 1, "{lower} names {upper}");
            }
            for upper in STOREYS[low + 1..].iter().flat_map(|rooms| rooms.iter()) {
                let right = format!("//! x\nuse crate::{lower}::Thing;");
                assert_eq!(faults(upper, "x.rs", &right), [""; 0], "{upper} names {lower}");
            }
        }
    }
    assert_eq!(faults("store", "s.rs", "//! x\nuse crate::{cell::{A, B}, dispatch::C};").len(), 1, "in a brace group");
    assert_eq!(faults("tail", "t.rs", "//! x\nfn f() { crate::lease::assign(); }").len(), 1, "in a path");
    assert_eq!(
        faults("shard", "s.rs", "//! x\nuse crate::{lease::F, tail::T}; // crate::cli::x"),
        [""; 0],
        "a comment"
    );
    assert_eq!(faults("tail", "t.rs", "use aws_sdk_dynamodb::Client;").len(), 2, "no doc, a foreign crate");
    let sleeps = "//! x\nfn f() { tokio::time::sleep(S) }";
    assert_eq!(faults("tail", "t.rs", sleeps).len(), 1, "past the clock");
    assert_eq!(faults("tail", "t.rs", &format!("//! x\n#[cfg(test)]\n{sleeps}")), [""; 0], "in a test");
    assert_eq!(faults("common", "h.rs", "//! x").len(), 1, "a room that is not on the plan");
}

/// Where the papers say that something is held by a test, that test is there.
#[test]
fn the_papers_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let paper = entry.unwrap().path();
        let text = fs::read_to_string(&paper).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = quoted.split_once(".rs::") else { continue };
            let file = format!("{file}.rs");
            let source = fs::read_to_string(root.join(&file)).unwrap_or_default();
            assert!(source.contains(&format!("fn {test}(")), "{} names {test} in {file}", paper.display());
            named += 1;
        }
    }
    assert!(named > 100, "they are found");
}
