//! A child that does not keep to the protocol, by mistake or on purpose: every line is an answer or a fault, every call ends with
//! one verdict an event, what is held is less than two lines, and what is told of it is short.

use super::{
    answer::{self, CONCURRENCY_MAX},
    fixture,
    lines::{Line, Lines},
    talk::{Heard, Job, LINE_MAX, Talk},
};
use crate::cell::{CellKey, NewCell, PutCell, Refusal, Verdict, hostile};
use proptest::prelude::*;
use std::time::Duration;
use tokio::{sync::oneshot, time::Instant};

/// A conversation about `calls` calls of two events each, all of them with the child.
fn talk(calls: u64) -> (Talk, Vec<oneshot::Receiver<Vec<Verdict>>>) {
    let mut talk = Talk::default();
    let replies = (0..calls).map(|call| {
        let (reply, receiver) = oneshot::channel();
        talk.accept(Job {
            call: fixture::call([2 * call + 1, 2 * call + 2], Duration::from_secs(60)),
            reply,
            since: Instant::now(),
        });
        receiver
    });
    let replies = replies.collect();
    talk.encode(Instant::now());
    let n = talk.out().len();
    talk.wrote(n);
    (talk, replies)
}

/// Every answer to the events of so many calls.
fn answers(calls: u64, bodies: &[String]) -> String {
    let mut text = String::new();
    for added_id in 1..=2 * calls {
        let id = serde_json::to_string(&fixture::event(added_id, "1").id()).unwrap();
        let body = &bodies[added_id as usize % bodies.len()];
        text += &match added_id % 4 {
            0 => format!(r#"{{"id":{id},"verdict":"done","put":[{{"column":"C","ref_key":1,"body":{body}}}]}}"#),
            1 => format!(r#"{{"id":{id},"verdict":"failed","error":"x","retry_after_ms":1500}}"#),
            2 => format!(r#"{{"verdict":"snooze","after_ms":5,"id":{id}}}"#),
            _ => format!(r#"{{"id":{id},"verdict":"dead_letter","error":"é\u0000"}}"#),
        };
        text.push('\n');
    }
    text
}

/// Gives bytes to a conversation as a pipe would, `step` at a time, and how many lines it heard.
fn say(talk: &mut Talk, said: &[u8], limit: usize, step: usize) -> Result<usize, TestCaseError> {
    let mut lines = Lines::new(limit);
    let mut heard = 0;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for mut part in said.chunks(step) {
        while runtime.block_on(lines.fill(&mut part)).unwrap() > 0 {
            while let Some(line) = lines.next() {
                heard += 1;
                let fault = talk.hear(&line);
                if let Heard::Fault(told) = fault {
                    prop_assert!(told.len() < 600, "{} bytes are told", told.len());
                }
            }
            // A line, and what one read may bring; a vector that grows holds at most twice as much.
            prop_assert!(lines.held() <= 2 * (limit + 2 * 64 * 1024), "{} bytes are held", lines.held());
        }
    }
    Ok(heard)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_call_ends_whatever_is_said(
        calls in 1_u64..6,
        bodies in prop::collection::vec(hostile::json(), 1..4),
        changes in hostile::changes(),
        limit in 20_usize..3000,
        step in 1_usize..5000,
    ) {
        let (mut talk, replies) = talk(calls);
        let said = hostile::changed(answers(calls, &bodies).as_bytes(), &changes);
        let feeds = said.iter().filter(|byte| **byte == b'\n').count();
        let heard = say(&mut talk, &said, limit, step)?;
        // One for each line feed, and one for what is cut off before its own came.
        prop_assert!(heard == feeds || heard == feeds + 1, "{heard} of {feeds}");
        talk.end("it ended");
        prop_assert!(talk.over() || talk.closed().is_none());
        let freed = talk.take_freed();
        prop_assert_eq!((freed.calls as u64, freed.keys.len() as u64), (calls, 2 * calls));
        for mut reply in replies {
            prop_assert_eq!(reply.try_recv().map(|verdicts| verdicts.len()), Ok(2));
        }
    }

    #[test]
    fn what_is_said_well_is_understood(calls in 1_u64..6, bodies in prop::collection::vec(hostile::json(), 1..4), step in 1_usize..5000) {
        let (mut talk, replies) = talk(calls);
        let said = answers(calls, &bodies);
        prop_assert_eq!(say(&mut talk, said.as_bytes(), LINE_MAX, step)?, 2 * calls as usize);
        prop_assert_eq!(talk.faults(), 0);
        for mut reply in replies {
            prop_assert_eq!(reply.try_recv().map(|verdicts| verdicts.len()), Ok(2));
        }
    }

    /// A verdict that is written as JSON comes back.
    #[test]
    fn a_verdict_comes_back(id in ".{0,40}", error in ".{0,80}", ms in 0_u64..31_536_000_000, row in ".{0,9}", body in hostile::json()) {
        let line = serde_json::json!({ "id": id, "verdict": "failed", "error": error, "retry_after_ms": ms }).to_string();
        let failed = Verdict::Failed { error, retry_after: Some(Duration::from_millis(ms)) };
        prop_assert_eq!(answer::answer(line.as_bytes()).unwrap(), (id.as_str().into(), failed));
        let (id, row_key) = (serde_json::to_string(&id).unwrap(), serde_json::to_string(&row).unwrap());
        let line = format!(r#"{{"id":{id},"verdict":"done","put":[{{"row_key":{row_key},"column":"C","ref_key":{ms},"body":{body}}}]}}"#);
        let put = vec![PutCell { row_key: Some(row.into()), column: "C".into(), ref_key: Some(ms), body: body.into() }];
        prop_assert_eq!(answer::answer(line.as_bytes()).unwrap().1, Verdict::Done { put });
    }

    #[test]
    fn a_changed_ready_line_is_refused_shortly(changes in hostile::changes()) {
        let line = hostile::changed(br#"{"ready": {"protocol": 1, "concurrency": 8}}"#, &changes);
        match answer::ready(&line) {
            Ok(concurrency) => prop_assert!((1..=CONCURRENCY_MAX as usize).contains(&concurrency)),
            Err(told) => prop_assert!(told.len() < 900, "{} bytes", told.len()),
        }
    }
}

/// The parser quotes a name that it does not know, and a child's first line may have four megabytes.
#[test]
fn little_is_told_of_a_long_ready_line() {
    let line = format!(r#"{{"{}": 1}}"#, "x".repeat(LINE_MAX - 10));
    let told = answer::ready(line.as_bytes()).unwrap_err();
    assert!(told.contains("unknown field `xxx") && told.len() < 900, "{} bytes", told.len());
}

/// A body of a million brackets is taken as text, without recursion, and the door refuses it.
#[test]
fn a_bottomless_body_does_not_come_through_the_door() {
    for (depth, refusal) in [(100, None), (101, Some(Refusal::BodyNesting)), (190_000, Some(Refusal::BodyNesting))] {
        let body = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let line = format!(r#"{{"id":"i","verdict":"done","put":[{{"column":"C","body":{body}}}]}}"#);
        let (_, verdict) = answer::answer(line.as_bytes()).unwrap();
        let Verdict::Done { put } = verdict else { unreachable!("it says done") };
        let key = CellKey { row_key: "r".into(), column: "C".into(), ref_key: 0 };
        let cell = NewCell { key, body: put[0].body.clone(), origin: None };
        assert_eq!(cell.check().err(), refusal, "{depth}");
    }
    let (mut talk, _replies) = talk(1);
    let open = "[".repeat(LINE_MAX);
    assert!(matches!(talk.hear(&Line::Whole(open.as_bytes())), Heard::Fault(_)));
}

/// A line without an end is heard of once, and a child that says nothing else is closed and then killed.
#[test]
fn an_endless_line_is_one_fault_and_babble_ends() {
    let (mut talk, _replies) = talk(1);
    assert_eq!(say(&mut talk, &vec![b'x'; 3 * LINE_MAX], LINE_MAX, 70_000).unwrap(), 1);
    assert_eq!((talk.faults(), talk.closed().is_some(), talk.babbles()), (1, false, false));
    say(&mut talk, &b"\n".repeat(2), LINE_MAX, 1).unwrap();
    assert_eq!((talk.faults(), talk.closed().is_some()), (3, true));
    say(&mut talk, &b"{}\n".repeat(97), LINE_MAX, 9).unwrap();
    assert!(talk.babbles());
}
