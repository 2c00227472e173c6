//! Holds `docs/handlers.md` to the code: each example of a message goes through the real encoder or decoder.

use super::{answer, command, envelope, fixture, talk::Talk};
use crate::{
    cell::{Event, Latest, Verdict},
    handler::Config,
};
use serde_json::Value;
use std::{os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};

const DOC: &str = include_str!("../../docs/handlers.md");

/// The code blocks with this info string.
fn blocks(info: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = DOC.lines();
    while let Some(line) = lines.next() {
        if let Some(opened) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if opened == info {
                found.push(block.join("\n") + "\n");
            }
        }
    }
    assert!(!found.is_empty(), "no block {info}");
    found
}

fn lines(info: &str) -> Vec<String> {
    blocks(info).iter().flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The rows of the table with this head, as cells without their back quotes.
fn table(head: &str) -> Vec<Vec<String>> {
    let rows = DOC.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "no table {head}");
    rows
}

fn event(added_id: u64) -> Event {
    let mut event = fixture::event(added_id, r#"{"fare": 12}"#);
    event.cell.key.row_key = "trip-1".into();
    event
}

#[test]
fn the_event_is_what_is_written() {
    let mut event = event(123);
    event.latest = Arc::new([
        Latest { column: "STATUS".into(), cell: Some((3, r#"{"is_completed": false}"#.into())) },
        Latest { column: "NOTE".into(), cell: None },
    ]);
    let mut line = Vec::new();
    envelope::write(&mut line, &event, &event.id());
    let [example] = &blocks("json event")[..] else { panic!("one example of an event") };
    let (written, example): (Value, Value) =
        (serde_json::from_slice(&line).unwrap(), serde_json::from_str(example).unwrap());
    assert_eq!(written, example);
}

#[tokio::test]
async fn the_messages_are_what_is_written() {
    let mut messages = Vec::new();
    for events in [vec![event(123)], vec![event(124), event(125)]] {
        let (reply, _answer) = tokio::sync::oneshot::channel();
        let call = crate::cell::Call::new(events, Duration::from_secs(1));
        let now = tokio::time::Instant::now();
        let mut talk = Talk::default();
        talk.accept(super::talk::Job { call, reply, since: now });
        talk.encode(now);
        assert_eq!(talk.out().iter().filter(|&&byte| byte == b'\n').count(), 1);
        messages.push(serde_json::from_slice::<Value>(talk.out()).unwrap());
    }
    let examples: Vec<Value> = lines("json message").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages, examples);
}

#[test]
fn the_ready_line_and_all_answers_are_understood() {
    for line in lines("json ready") {
        assert_eq!(answer::ready(line.as_bytes()), Ok(8));
    }
    let mut labels: Vec<String> = Vec::new();
    for line in lines("json answer") {
        let (id, verdict) = answer::answer(line.as_bytes()).unwrap_or_else(|wrong| panic!("{line}: {wrong:?}"));
        assert_eq!(id, event(123).id());
        labels.push(verdict.label().to_owned());
    }
    labels.dedup();
    let described: Vec<String> =
        table("| verdict | what follows |").into_iter().map(|mut row| row.swap_remove(0)).collect();
    assert_eq!(labels, described);
    for line in lines("json refused") {
        assert!(answer::answer(line.as_bytes()).is_err(), "{line}");
    }
}

#[test]
fn the_configs_are_configs() {
    for block in blocks("toml config") {
        let file: toml::Table = toml::from_str(&block).unwrap();
        for (name, trigger) in file["triggers"].as_table().unwrap() {
            let handler: Config =
                trigger["handler"].clone().try_into().unwrap_or_else(|error| panic!("{name}: {error}"));
            handler.check().unwrap();
        }
    }
}

#[test]
fn the_exit_codes_are_verdicts() {
    for row in table("| exit code | verdict |") {
        let codes = row[0].split(", ").filter_map(|code| code.parse::<i32>().ok());
        for code in codes {
            let verdict = command::verdict(ExitStatus::from_raw(code << 8), None);
            let described = match verdict {
                Verdict::Snooze { after } => format!("snooze for {}", humantime::format_duration(after)),
                verdict => verdict.label().to_owned(),
            };
            assert_eq!(described.replace("30s", "30 s"), row[1], "exit code {code}");
        }
    }
    let script = blocks("sh command").concat();
    for (name, _) in command::variables(&event(123), event(123).id()) {
        assert!(script.contains(&format!("${name}")), "{name} is not described");
    }
}
