//! Children that fail, hang, flood, babble, die or never live.

use super::*;
use futures_util::FutureExt;
use std::pin::pin;
use tokio::join;

fn failed(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Failed { error, .. } => error,
        other => panic!("not failed: {other:?}"),
    }
}

fn interrupted(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Interrupted { error } => error,
        other => panic!("not interrupted: {other:?}"),
    }
}

/// A child that ends takes its calls with it: nobody knows whose fault it was. What it answered before counts.
#[tokio::test]
async fn the_calls_of_a_child_that_ends_are_interrupted() {
    let handler = children(1, &["ok", "9"]);
    let first = pid(&handler, 1).await;
    let (held, answered, fatal) = join!(
        call(&handler, 2, json!({"do": "silence"})),
        call(&handler, 3, json!({"do": "pid"})),
        call(&handler, 4, json!({"do": "exit", "code": 3})),
    );
    for verdict in [&held, &fatal] {
        let error = interrupted(verdict);
        assert!(error.contains("exit status: 3") && error.contains("last words"), "{error}");
    }
    assert_eq!(seen(&answered)["pid"], first);
    assert_ne!(pid(&handler, 5).await, first);
}

/// A call that was alone in the child is to blame.
#[tokio::test]
async fn a_call_that_was_alone_in_a_child_that_ends_has_failed() {
    let handler = children(1, &["ok", "9"]);
    let verdict = call(&handler, 1, json!({"do": "exit", "code": 7})).await;
    let error = failed(&verdict);
    assert!(error.contains("exit status: 7") && error.contains("last words"), "{error}");
    assert_eq!(handler.counts().faults, 0);
}

/// An answer that is written just before the end is read.
#[tokio::test]
async fn an_answer_before_the_end_counts() {
    for n in 1..=3 {
        let handler = children(1, &["ok", "1"]);
        assert_eq!(call(&handler, n, json!({"do": "answer_and_exit"})).await, Verdict::done());
    }
}

/// After a time-out the child gets nothing new, its other calls finish, then its group is killed, and only then the
/// late call is answered.
#[tokio::test]
async fn a_late_call_is_answered_when_the_child_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (go, grandchild) = (dir.path().join("go"), dir.path().join("grandchild"));
    let handler = children(1, &["ok", "9"]);
    let child = pid(&handler, 1).await;
    let mut neighbour = pin!(call(&handler, 2, json!({"do": "file", "path": text(&go)})));
    let late = event(3, &json!({"do": "grandchild", "path": text(&grandchild)}));
    let mut late = pin!(call_event(&handler, late, Duration::from_millis(300)));
    assert_eq!(neighbour.as_mut().now_or_never(), None);
    assert_eq!(late.as_mut().now_or_never(), None);
    until("a call is late", || handler.counts().timeouts == 1).await;
    until("the grandchild is there", || grandchild.exists()).await;
    let grandchild: i64 = std::fs::read_to_string(&grandchild).unwrap().parse().unwrap();
    let mut next = pin!(pid(&handler, 4));
    assert_eq!(next.as_mut().now_or_never(), None);
    assert_eq!(late.as_mut().now_or_never(), None);
    assert!(runs(child) && runs(grandchild));

    std::fs::write(&go, "").unwrap();
    assert_eq!(seen(&neighbour.await)["pid"], child);
    assert_eq!(failed(&late.await), "no answer within 300ms");
    assert!(!runs(child));
    until("the grandchild is gone", || !runs(grandchild)).await;
    assert_ne!(next.await, child);
}

/// Ids without a call, second answers and plain babble are logged and counted; the third ends the child after the
/// calls that it has.
#[tokio::test]
async fn the_third_fault_restarts_the_child() {
    let handler = children(1, &["ok", "9"]);
    let done = r#"{"id": "ID", "verdict": "done"}"#;
    let first = pid(&handler, 1).await;
    let twice = call(&handler, 2, json!({"do": "say", "lines": [done, done]})).await;
    assert_eq!(twice, Verdict::done());
    let stranger = r#"{"id": "trips/k3v9/5/999", "verdict": "done"}"#;
    assert_eq!(call(&handler, 3, json!({"do": "say", "lines": [stranger, done]})).await, Verdict::done());
    assert_eq!(pid(&handler, 4).await, first);
    assert_eq!(handler.counts().faults, 2);

    assert_eq!(call(&handler, 5, json!({"do": "say", "lines": ["Hello!", done]})).await, Verdict::done());
    assert_eq!(handler.counts().faults, 3);
    assert_ne!(pid(&handler, 6).await, first);
}

/// An answer that names its event but is wrong otherwise fails that event at once.
#[tokio::test]
async fn a_wrong_answer_says_what_is_wrong() {
    let handler = children(1, &["ok", "9"]);
    let line = r#"{"id": "ID", "verdict": "done", "puts": []}"#;
    let verdict = call(&handler, 1, json!({"do": "say", "lines": [line]})).await;
    assert!(failed(&verdict).contains("unknown field `puts`"), "{verdict:?}");
    assert_eq!(handler.counts().faults, 1);
}

/// A line of 100 MB is one fault, and is never held.
#[tokio::test]
async fn a_line_of_100_mb_is_not_held() {
    let handler = children(1, &["ok", "9"]);
    pid(&handler, 1).await;
    let before = peak();
    assert_eq!(call(&handler, 2, json!({"do": "long"})).await, Verdict::done());
    assert_eq!(handler.counts().faults, 1);
    let grown = peak() - before;
    assert!(grown < 50, "{grown} MB more");
}

/// Most memory that this process has had, in MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// A child that writes without end is killed, and the next one goes on.
#[tokio::test]
async fn a_flood_ends_with_the_child() {
    let handler = children(1, &["ok", "9"]);
    let verdict = call(&handler, 1, json!({"do": "flood"})).await;
    assert!(failed(&verdict).contains("does not keep to the protocol"), "{verdict:?}");
    pid(&handler, 2).await;
}

/// Standard error is read, however much there is.
#[tokio::test]
async fn a_flood_of_standard_error_stops_nothing() {
    let handler = children(1, &["ok", "9"]);
    assert_eq!(call(&handler, 1, json!({"do": "flood_stderr"})).await, Verdict::done());
}

/// A child that reads nothing: its calls are late, and those that it was never given go to the next child.
#[tokio::test]
async fn a_child_that_does_not_read_is_replaced() {
    let handler = children(1, &["ok", "9"]);
    let first = pid(&handler, 1).await;
    let sleeper = call_event(&handler, event(2, &json!({"do": "sleep"})), Duration::from_millis(300));
    // More than the pipe holds, so that no more than the first of these can be on its way.
    let big = json!({"do": "pid", "more": "x".repeat(300_000)});
    let stuck = call_event(&handler, event(3, &big), Duration::from_millis(300));
    let others = (4..7).map(|n| call_event(&handler, event(n, &big), PATIENCE));
    let (sleeper, stuck, others) = join!(sleeper, stuck, futures_util::future::join_all(others));
    assert_eq!(failed(&sleeper), "no answer within 300ms");
    assert_eq!(failed(&stuck), "no answer within 300ms");
    for verdict in &others {
        assert_ne!(seen(verdict)["pid"], first);
    }
}

/// A child that closes its input can get nothing more; what it was not given goes to the next one.
#[tokio::test]
async fn a_child_that_closes_its_input_is_replaced() {
    let handler = children(1, &["ok", "9"]);
    let first = pid(&handler, 1).await;
    assert_eq!(call(&handler, 2, json!({"do": "close_stdin"})).await, Verdict::done());
    assert_ne!(pid(&handler, 3).await, first);
}

/// Without a child, calls wait within their timeout and then say why.
#[tokio::test]
async fn what_cannot_be_started_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "not a program").unwrap();
    for (command, reason) in [("no-such-program-here", "No such file"), (&*text(&plain), "Permission denied")] {
        let handler = exec_config(&[command]).build(&trigger()).unwrap();
        let verdict = call_event(&handler, event(1, &json!({})), Duration::from_millis(300)).await;
        let error = failed(&verdict);
        assert!(error.starts_with("child could not be started: cannot start"), "{error}");
        assert!(error.contains(command) && error.contains(reason), "{error}");
        handler.stop().await;
    }
}

/// The same for one that starts, but is never ready.
#[tokio::test]
async fn a_child_that_is_not_ready_in_time_is_a_clear_error() {
    for (mode, reason) in [
        ("garbled", "its first line is not"),
        ("protocol_2", "it speaks protocol 2; this daemon speaks 1"),
        ("die", "after the words: no module named nothing"),
        ("endless", "its first line is too long"),
    ] {
        let handler = children(1, &[mode]);
        // The reason is that of the last child that failed to start.
        until("a child has failed", || handler.counts().starts >= 2).await;
        let verdict = call_event(&handler, event(1, &json!({})), Duration::ZERO).await;
        let error = failed(&verdict);
        assert!(error.starts_with("child could not be started: ") && error.contains(reason), "{mode}: {error}");
    }
}

/// The ready line has ten seconds. The clock is stopped, and stands while this test does not rest.
#[tokio::test(start_paused = true)]
async fn the_ready_line_has_ten_seconds() {
    let handler = children(1, &["never_ready"]);
    let busy_until = async |so: &dyn Fn() -> bool| {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    busy_until(&|| handler.counts().starts == 1).await;
    tokio::time::advance(Duration::from_millis(9_900)).await;
    assert_eq!(handler.counts().failed_starts, 0);
    tokio::time::advance(Duration::from_millis(200)).await;
    busy_until(&|| handler.counts().failed_starts == 1).await;
    let mut verdict = pin!(call_event(&handler, event(1, &json!({})), Duration::ZERO));
    let mut answer = None;
    while answer.is_none() {
        answer = verdict.as_mut().now_or_never();
        tokio::task::yield_now().await;
    }
    assert_eq!(failed(&answer.unwrap()), "child could not be started: no ready line within 10 s");
}

/// A call waits for the next start.
#[tokio::test]
async fn a_call_outlives_a_failed_start() {
    let dir = tempfile::tempdir().unwrap();
    let handler = children(1, &["die_once", "1", &text(&dir.path().join("died"))]);
    pid(&handler, 1).await;
    let counts = handler.counts();
    assert_eq!((counts.starts, counts.failed_starts), (2, 1));
}

/// The daemon lost the right to an event and got it again, while the child was still at it: the child gets it again
/// only when it is done, and its first answer is nobody's and no fault.
#[tokio::test]
async fn an_event_whose_caller_went_away_is_not_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let handler = children(2, &["ok", "9"]);
    {
        let mut lost = pin!(call(&handler, 1, json!({"do": "file", "path": text(&go)})));
        assert_eq!(lost.as_mut().now_or_never(), None);
        // The other child is up too, and this call came later: so the first one has been given.
        until("both are up", || handler.counts().starts == 2).await;
        pid(&handler, 2).await;
    }
    let mut again = pin!(call(&handler, 1, json!({"do": "busy"})));
    assert_eq!(again.as_mut().now_or_never(), None);
    pid(&handler, 3).await;
    assert_eq!(again.as_mut().now_or_never(), None);
    std::fs::write(&go, "").unwrap();
    assert_eq!(seen(&again.await)["now"], 1);
    assert_eq!(handler.counts().faults, 0);
}

/// Dropping the handler leaves no process behind.
#[tokio::test]
async fn dropping_the_handler_kills_the_children() {
    let handler = children(1, &["stubborn", "9"]);
    let child = pid(&handler, 1).await;
    drop(handler);
    until("the child is gone", || !runs(child)).await;
}
