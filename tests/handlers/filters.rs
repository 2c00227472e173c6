//! What `docs/handlers.md` says about filters, and that a filter sees what a handler gets.

use super::*;
use cellhook::filter::{Decision, Filter};
use cellhook::handler::envelope;

const DOC: &str = include_str!("../../docs/handlers.md");

#[test]
fn the_filters_decide_as_is_written() {
    let table = DOC.lines().skip_while(|line| *line != "| expression | body | outcome |").skip(2);
    let mut rows = 0;
    for row in table.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        let [expression, body, outcome] = cells[..] else { panic!("three cells: {row}") };
        let mut event = event(1, &json!(null));
        event.cell.key.row_key = "trip-1".into();
        event.cell.body = body.into();
        let decision = Filter::new(&[], Some(expression)).unwrap().decide(&event.cell, &event.datastore);
        let decided = match &decision {
            Decision::Call => "called",
            Decision::Pass => "passed",
            Decision::Erased => "erased",
            Decision::Failed(_) => "parked",
        };
        assert_eq!(decided, outcome, "{row}: {decision:?}");
        rows += 1;
    }
    assert!(rows > 10, "{rows}");
}

#[test]
fn the_filters_of_the_configs_are_filters() {
    for line in DOC.lines().filter(|line| line.starts_with("filter = ")) {
        let line: toml::Table = toml::from_str(line).unwrap();
        Filter::new(&[], line["filter"].as_str()).unwrap();
    }
}

/// The envelope and the variables of a filter are the same values.
#[test]
fn a_filter_sees_the_envelope() {
    let event = event(123, &json!({"fare": 12, "tip": 1.5, "list": [null, true, "text"]}));
    let mut line = Vec::new();
    envelope::write(&mut line, &event, &event.id());
    let envelope: Value = serde_json::from_slice(&line).unwrap();
    for name in ["id", "source", "type", "subject", "time", "data"] {
        let expression = format!("{name} == {}", envelope[name]);
        let decision = Filter::new(&[], Some(&expression)).unwrap().decide(&event.cell, &event.datastore);
        assert_eq!(decision, Decision::Call, "{expression}");
    }
}
