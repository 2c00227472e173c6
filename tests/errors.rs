//! The error matrix: every request that a worker makes, times every error that DynamoDB and the way to it can answer with, once and
//! until it is healed, times the phases of a worker's life. What is to be done about each stands in `errors/table.rs`, by hand.
//!
//! Held of each case: the verdict is the table's; an error that lasts is told with the names of operation, table and error; it is
//! asked for with rests ([`A_MINUTE`], [`OF_ALL`]); nothing panics; and once the error has gone, every cell is handled and every
//! answer appended. `HOOKTEST_ERRORS=all` runs all cases, any other text those whose names contain it; without it one case runs of each
//! row, class of error and length, drawn by `HOOKTEST_SEED`.

mod faults;
pub(crate) mod server;
mod statements;
mod table;
mod world;

use faults::{Class, FAULTS, Fault};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};
use table::{ROWS, Row};
use world::{Phase, Seen, Verdict, live};

/// Requests of one kind that a worker makes in a minute, at most, while they fail: the workers of these tests hold two shards, with a
/// handful of cells to be tried again.
const A_MINUTE: u64 = 240;
/// And of all kinds together. A worker that waits for a shard reads the leases every 3 s, by 16 queries.
const OF_ALL: u64 = 700;
/// The same where the server contradicts itself: what is believed is thrown away and read anew, once a second.
const OF_ALL_REFUSED: u64 = 2400;

/// The requests of a worker.
pub(crate) fn statements() -> BTreeSet<&'static str> {
    ROWS.iter().map(|row| row.statement).collect()
}

struct Case {
    row: &'static Row,
    fault: &'static Fault,
    once: bool,
}

impl Case {
    fn name(&self) -> String {
        let length = if self.once { "once" } else { "lasting" };
        format!("{:?} | {} | {} | {length}", self.row.phase, self.row.statement, self.fault.name)
    }

    /// What is not as it should be.
    fn wrong(&self, seen: &Seen) -> Vec<String> {
        let Seen { verdict, message, log, watched, wrong } = seen;
        let mut wrong = wrong.clone();
        let wanted = self.row.verdict(self.fault.class, self.once);
        if *verdict != wanted {
            wrong.push(format!("{verdict:?}, and not {wanted:?} {message}"));
        }
        if watched.met == 0 {
            wrong.push("it was never met".into());
        }
        let unlisted = watched.asked.keys().filter(|name| ROWS.iter().all(|row| row.statement != **name));
        wrong.extend(unlisted.map(|name| format!("no row has {name}")));
        for (minute, asked) in &watched.minutes {
            let (of_it, all) = (asked.get(self.row.statement).copied().unwrap_or(0), asked.values().sum::<u64>());
            let most = if self.fault.class == Class::Refused { OF_ALL_REFUSED } else { OF_ALL };
            if of_it > A_MINUTE || all > most {
                wrong.push(format!("in minute {minute} it was asked {of_it} times, of {all} requests: {asked:?}"));
            }
        }
        let (operation, rest) = self.row.statement.split_once(' ').unwrap();
        let table = rest.split(' ').next().filter(|table| !table.starts_with('(')).unwrap_or_default();
        let tells = |line: &str| line.contains(operation) && line.contains(table) && line.contains(self.fault.mark);
        let is_told = if wanted == Verdict::Stop { tells(message) } else { log.lines().any(tells) };
        if wanted == Verdict::Stop && !message.contains(table) {
            wrong.push(format!("the table is not named: {message}"));
        }
        if !self.once && self.row.told(self.fault.class) && !is_told {
            wrong.push("nobody is told".into());
        }
        if !wrong.is_empty() {
            let asked = watched.asked.get(self.row.statement).copied().unwrap_or(0);
            wrong.push(format!("it was met {} times, of {asked}", watched.met));
            wrong.extend(log.lines().take(12).map(|line| format!("    {line}")));
        }
        wrong
    }
}

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in ROWS {
        let operation = row.statement.split(' ').next().unwrap();
        for fault in FAULTS.iter().filter(|fault| fault.meets(operation)) {
            cases.extend([true, false].map(|once| Case { row, fault, once }));
        }
    }
    cases
}

/// One of each row, class and length.
fn some(cases: Vec<Case>, seed: u64) -> Vec<Case> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut groups: BTreeMap<(Phase, &str, Class, bool), Vec<Case>> = BTreeMap::new();
    for case in cases {
        groups.entry((case.row.phase, case.row.statement, case.fault.class, case.once)).or_default().push(case);
    }
    groups.into_values().map(|mut group| group.swap_remove(rng.usize(..group.len()))).collect()
}

#[test]
fn every_error_is_met_as_the_table_says() {
    let seed: u64 = std::env::var("HOOKTEST_SEED").map_or(0, |seed| seed.parse().unwrap());
    let cases = all();
    let whole = cases.len();
    let cases = match std::env::var("HOOKTEST_ERRORS") {
        Err(_) => some(cases, seed),
        Ok(text) if text == "all" => cases,
        Ok(text) => cases.into_iter().filter(|case| case.name().contains(&text)).collect(),
    };
    // Past the capture of the test harness, which would swallow it.
    let _ =
        writeln!(std::io::stderr(), "error matrix: {} of {whole} cases (HOOKTEST_ERRORS=all runs all)", cases.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some((at, case)) = Some(next.fetch_add(1, Relaxed)).and_then(|at| Some((at, cases.get(at)?))) {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
            let seen = live(case.row.phase, Some((case.row.statement, case.fault, case.once)), seed);
            let wrong = case.wrong(&seen);
            if !wrong.is_empty() {
                failed.lock().unwrap().insert(at, format!("{}\n  {}", case.name(), wrong.join("\n  ")));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    let text: Vec<&str> = failed.values().map(String::as_str).collect();
    assert!(
        failed.is_empty(),
        "{} of {} cases are not as the table says:\n{}",
        failed.len(),
        cases.len(),
        text.join("\n")
    );
}

/// What a worker asks for without any error is what the table has, phase by phase: a new request needs its verdicts, and a row
/// that nothing reaches says nothing.
#[test]
fn the_table_has_every_request_of_a_worker_and_no_others() {
    let mut wrong = Vec::new();
    for phase in [Phase::StartUp, Phase::Steady, Phase::Trimming, Phase::Takeover, Phase::Shutdown] {
        let seen = live(phase, None, 1);
        wrong.extend(seen.wrong.iter().map(|what| format!("{phase:?} without a fault: {what}")));
        assert_eq!((seen.verdict, &*seen.message), (Verdict::Retry, ""), "{phase:?} without a fault");
        let most = seen.watched.minutes.values().map(|asked| asked.values().sum()).max().unwrap_or(0);
        assert!((1..OF_ALL / 2).contains(&most), "{phase:?}: {most} requests in a minute without a fault");
        // What goes on meanwhile as ever has its rows there.
        let has = |row: &&Row| row.phase == phase || phase == Phase::Trimming && row.phase == Phase::Steady;
        let rows: BTreeSet<&str> = ROWS.iter().filter(has).map(|row| row.statement).collect();
        let unlisted = seen.watched.asked.keys().filter(|name| !rows.contains(**name));
        wrong.extend(unlisted.map(|name| format!("{phase:?}: no row has {name}")));
        let asked = |row: &&Row| row.phase != phase || seen.watched.asked.contains_key(row.statement);
        wrong.extend(ROWS.iter().filter(|row| !asked(row)).map(|row| format!("{phase:?}: nobody asks for {row:?}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let places: BTreeSet<(Phase, &str)> = ROWS.iter().map(|row| (row.phase, row.statement)).collect();
    assert_eq!(places.len(), ROWS.len(), "no row stands twice");
}

/// The matrix sees what it is there to see: the same case under another verdict, and a fault that nobody is told of.
#[test]
fn a_verdict_that_does_not_hold_is_seen() {
    let find = |name: &str| FAULTS.iter().find(|fault| fault.name == name).unwrap();
    let row = |phase, statement| ROWS.iter().find(|row| row.phase == phase && row.statement == statement).unwrap();
    let heartbeat = row(Phase::Steady, "UpdateItem control (heartbeat)");
    let lasting = Case { row: heartbeat, fault: find("connection refused"), once: false };
    let seen = live(Phase::Steady, Some((heartbeat.statement, lasting.fault, false)), 1);
    assert_eq!(lasting.wrong(&seen), [""; 0]);
    let once = Case { once: true, ..lasting };
    assert!(once.wrong(&seen)[0].starts_with("GiveUp, and not Retry"), "{:?}", once.wrong(&seen));
    let silent = Case { fault: find("AccessDeniedException"), once: false, ..once };
    assert_eq!(silent.wrong(&seen)[0], "nobody is told");
    let other = Case { row: row(Phase::Steady, "UpdateItem control (nudge)"), ..silent };
    assert!(other.wrong(&seen)[0].starts_with("GiveUp, and not Retry"), "{:?}", other.wrong(&seen));
}
