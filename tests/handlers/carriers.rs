//! Handlers that do as they should.

use super::*;
use cellhook::handler::Config;
use futures_util::{FutureExt, future::join_all};
use std::pin::pin;

/// Every verdict comes through, with what belongs to it.
#[tokio::test]
async fn a_child_answers_with_every_verdict() {
    let handler = children(1, &["ok", "1"]);
    for (number, (answer, verdict)) in (1..).zip([
        (json!({"verdict": "done"}), Verdict::done()),
        (json!({"verdict": "drop"}), Verdict::Drop),
        (json!({"verdict": "snooze", "after_ms": 1500}), Verdict::Snooze { after: Duration::from_millis(1500) }),
        (json!({"verdict": "failed", "error": "no"}), Verdict::failed("no")),
        (json!({"verdict": "dead_letter", "error": "no"}), Verdict::DeadLetter { error: "no".to_owned() }),
        (json!({"verdict": "pause", "error": "no"}), Verdict::Pause { error: "no".to_owned() }),
    ]) {
        let mut line = answer;
        line["id"] = "ID".into();
        assert_eq!(call(&handler, number, json!({"do": "say", "lines": [line.to_string()]})).await, verdict);
    }
    assert_eq!(handler.counts().faults, 0);
    handler.stop().await;
}

/// As many calls are in a child as it said, and answers come in any order.
#[tokio::test]
async fn a_child_has_many_calls_at_a_time() {
    let handler = children(1, &["ok", "8"]);
    let verdicts = join_all((1..=32).map(|n| call(&handler, n, json!({"do": "gather", "n": 8})))).await;
    for verdict in &verdicts {
        assert_eq!(seen(verdict)["now"], 8);
    }
    assert_eq!(seen(&call(&handler, 40, json!({"do": "busy"})).await), json!({"now": 1, "busiest": 8}));
}

/// Calls are spread over the children evenly.
#[tokio::test]
async fn calls_are_spread_over_the_children() {
    let handler = children(3, &["ok", "8"]);
    // Which child has what depends on when it came up, until all have something.
    join_all((1..=64).map(|n| call(&handler, n, json!({"do": "pid"})))).await;
    until("all are up", || handler.counts().starts == 3).await;
    let mut pids = BTreeMap::new();
    while pids.len() < 3 {
        for verdict in join_all((1..=24).map(|n| call(&handler, n, json!({"do": "pid"})))).await {
            *pids.entry(seen(&verdict)["pid"].as_i64().unwrap()).or_insert(0) += 1;
        }
    }
    // Six calls at once: two in each, or they would never be answered.
    let verdicts = join_all((1..=6).map(|n| call(&handler, n, json!({"do": "gather", "n": 2})))).await;
    let mut shares = BTreeMap::new();
    for verdict in &verdicts {
        *shares.entry(seen(verdict)["pid"].as_i64().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

/// A call with more than one event is one message, and its verdicts are in the order of its events, however they came.
#[tokio::test]
async fn a_batch_is_one_message() {
    let handler = children(1, &["ok", "1"]);
    let mut events: Vec<Event> = (1..=3).map(|n| event(n, &json!({"do": "gather", "n": 3}))).collect();
    events.push(event(4, &json!({"do": "event"})));
    let verdicts = handler.clone().call(Call::new(events, PATIENCE)).await;
    assert_eq!(verdicts.len(), 4);
    let message = seen(&verdicts[3]);
    let ids: Vec<&str> = message["events"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4].map(|n| format!("trips/k3v9/5/{n}")));
    assert_eq!(message["batch"], "b0");
}

/// A batch that would make a line of more than 4 MB becomes several; a body over many lines stays one line.
#[tokio::test]
async fn a_large_batch_is_cut() {
    let handler = children(1, &["ok", "1"]);
    let large = json!({"do": "busy", "more": "x".repeat(300_000)});
    let mut events: Vec<Event> = (1..=20).map(|n| event(n, &large)).collect();
    events.push(event(21, &json!({"do": "event"})));
    events[20].cell.body = "{\n  \"do\":\r\n  \"event\"\n}".into();
    let verdicts = handler.clone().call(Call::new(events, PATIENCE)).await;
    let message = seen(&verdicts[20]);
    assert_eq!(message["batch"], "b0.1");
    let events = message["events"].as_array().unwrap().len();
    assert!((5..=10).contains(&events), "{events}");
    assert!(verdicts[..20].iter().all(|verdict| matches!(verdict, Verdict::Done { .. })));
}

/// An event that has to be alone has the child for itself.
#[tokio::test]
async fn an_event_is_alone_when_it_has_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let handler = children(1, &["ok", "9"]);
    let mut before = pin!(call(&handler, 1, json!({"do": "file", "path": text(&go)})));
    assert_eq!(before.as_mut().now_or_never(), None);
    pid(&handler, 2).await;
    let mut alone = event(3, &json!({"do": "busy"}));
    alone.alone = true;
    let mut alone = pin!(call_event(&handler, alone, PATIENCE));
    let mut after = pin!(call(&handler, 4, json!({"do": "busy"})));
    assert_eq!(alone.as_mut().now_or_never(), None);
    assert_eq!(after.as_mut().now_or_never(), None);
    tokio::select! {
        biased;
        _ = &mut alone => panic!("it was not alone"),
        _ = &mut after => panic!("it came before the one that is alone"),
        verdict = &mut before => panic!("nobody let it go: {verdict:?}"),
        () = async { tokio::task::yield_now().await; std::fs::write(&go, "").unwrap() } => {}
    }
    let (before, alone, after) = tokio::join!(before, alone, after);
    assert!(matches!(before, Verdict::Done { .. }));
    assert_eq!((seen(&alone)["now"].as_i64(), seen(&after)["now"].as_i64()), (Some(1), Some(1)));
}

/// Stop closes the input, and waits for the answers that are due.
#[tokio::test]
async fn stop_waits_for_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let handler = children(1, &["ok", "9"]);
    let child = pid(&handler, 1).await;
    let mut due = pin!(call(&handler, 2, json!({"do": "file", "path": text(&go)})));
    assert_eq!(due.as_mut().now_or_never(), None);
    pid(&handler, 3).await;
    let mut stop = pin!(handler.clone().stop());
    assert_eq!(stop.as_mut().now_or_never(), None);
    // What comes after that was not tried.
    let late = call(&handler, 4, json!({"do": "pid"}));
    let (late, ()) = tokio::join!(late, async {
        tokio::task::yield_now().await;
        std::fs::write(&go, "").unwrap();
    });
    assert!(matches!(late, Verdict::Snooze { .. } | Verdict::Done { .. }), "{late:?}");
    assert_eq!(seen(&due.await)["pid"], child);
    stop.await;
    assert!(!runs(child));
    assert_eq!(call(&handler, 5, json!({"do": "pid"})).await, Verdict::Snooze { after: Duration::from_secs(1) });
}

/// A child that ends neither at the end of its input nor on TERM is killed. The clock is stopped once the child is up.
#[tokio::test]
async fn stop_ends_a_stubborn_child() {
    let handler = children(1, &["stubborn", "9"]);
    let child = pid(&handler, 1).await;
    let began = std::time::SystemTime::now();
    tokio::time::pause();
    handler.stop().await;
    assert!(!runs(child));
    assert!(began.elapsed().unwrap() < PATIENCE);
}

/// Nothing of the daemon's environment gets through but what the config passes.
#[tokio::test]
async fn the_environment_is_empty_but_for_the_config() {
    // What the kernel shows as the environment is what the process was started with.
    let script = r#"
        echo '{"ready": {"protocol": 1, "concurrency": 1}}'
        read -r event
        if [ "$(tr '\0' '\n' < /proc/$$/environ | sort | tr '\n' ' ')" = "GREETING=hello PATH=$PATH " ]
        then echo '{"id": "trips/k3v9/5/1", "verdict": "done"}'
        else echo '{"id": "trips/k3v9/5/1", "verdict": "drop"}'
        fi
        read -r more"#;
    let mut config = exec_config(&["sh", "-c", script]);
    config.env.insert("GREETING".to_owned(), "hello".to_owned());
    config.env_pass.push("NO_SUCH_VARIABLE".to_owned());
    let handler = config.build(&trigger()).unwrap();
    assert_eq!(call(&handler, 1, json!({})).await, Verdict::done());
}

/// The working directory is the config's.
#[tokio::test]
async fn a_child_starts_in_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("here"), "").unwrap();
    let mut config = command(r"test -f here");
    config.dir = Some(dir.path().to_owned());
    assert_eq!(run(config, event(1, &json!({})), PATIENCE).await, Verdict::done());
}

fn command(script: &str) -> cellhook::handler::CommandConfig {
    cellhook::handler::CommandConfig {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        dir: None,
        env: BTreeMap::new(),
        env_pass: vec!["PATH".to_owned()],
    }
}

async fn run(config: cellhook::handler::CommandConfig, event: Event, timeout: Duration) -> Verdict {
    let handler = Config::Command(config).build(&trigger()).unwrap();
    handler.call(Call::new(vec![event], timeout)).await.remove(0)
}

/// A process gets its event on standard input and in its environment, and its exit code is the verdict.
#[tokio::test]
async fn a_command_has_its_event_in_two_ways() {
    let script = r#"
        read -r line
        case $line in *'"id":"trips/k3v9/5/7"'*'"body":{"fare":12}'*) ;; *) echo "bad: $line" >&2; exit 1;; esac
        env | grep ^CELLHOOK_ | sort >&2
        test "$CELLHOOK_EVENT_ID $CELLHOOK_TRIGGER $CELLHOOK_DATASTORE $CELLHOOK_ROW_KEY $CELLHOOK_COLUMN" = \
            "trips/k3v9/5/7 bill_rider trips row-7 BASE" || exit 2
        test "$CELLHOOK_REF_KEY $CELLHOOK_ADDED_ID $CELLHOOK_SHARD $CELLHOOK_ATTEMPT $CELLHOOK_EPOCH" = "1 7 5 1 3" || exit 3
    "#;
    assert_eq!(run(command(script), event(7, &json!({"fare": 12})), PATIENCE).await, Verdict::done());
}

/// What no environment can hold is told at once, and is not tried for a day.
#[tokio::test]
async fn a_command_is_not_started_with_a_zero_byte() {
    let mut row = event(1, &json!({}));
    row.cell.key.row_key = "a\0b".into();
    let mut column = event(2, &json!({}));
    column.cell.key.column = "a\0b".into();
    for (event, told) in [(row, "the row_key contains a zero byte"), (column, "the column contains a zero byte")] {
        let verdict = run(command("exit 0"), event, PATIENCE).await;
        assert!(matches!(&verdict, Verdict::DeadLetter { error } if error.starts_with(told)), "{verdict:?}");
    }
}

/// Exit codes, signals, and the last line of standard error.
#[tokio::test]
async fn an_exit_code_is_a_verdict() {
    for (script, verdict) in [
        ("exit 75", Verdict::Snooze { after: Duration::from_secs(30) }),
        ("echo a >&2; echo b >&2; exit 65", Verdict::DeadLetter { error: "exit code 65: b".to_owned() }),
        ("echo 'no key' >&2; exit 78", Verdict::Pause { error: "exit code 78: no key".to_owned() }),
        ("exit 1", Verdict::failed("exit code 1")),
        ("kill -9 $$", Verdict::failed("killed by signal 9")),
        // Reads nothing of 300 KB, and writes a lot.
        ("head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2; exit 0", Verdict::done()),
    ] {
        let body = json!({"more": "x".repeat(300_000)});
        assert_eq!(run(command(script), event(1, &body), PATIENCE).await, verdict, "{script}");
    }
}

/// What cannot be started will not start at the next attempt either.
#[tokio::test]
async fn a_command_that_cannot_be_started_pauses_the_trigger() {
    let mut config = command("");
    config.command = vec!["no-such-program-here".to_owned()];
    let verdict = run(config, event(1, &json!({})), PATIENCE).await;
    assert!(matches!(&verdict, Verdict::Pause { error } if error.contains("no-such-program-here")), "{verdict:?}");
}

/// A process that takes too long is killed with all that it started.
#[tokio::test]
async fn a_command_is_killed_with_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", text(&file));
    let mut calling = pin!(run(command(&script), event(1, &json!({})), PATIENCE));
    tokio::select! {
        biased;
        verdict = &mut calling => panic!("it does not end by itself: {verdict:?}"),
        () = until("the grandchild is there", || file.exists()) => {}
    }
    // From here on the clock jumps as soon as nothing else can happen.
    tokio::time::pause();
    assert_eq!(calling.await, Verdict::failed("no end within 1m"));
    tokio::time::resume();
    let grandchild: i64 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    until("the grandchild is gone", || !runs(grandchild)).await;
}

/// The events of a call run in order, each in a process of its own.
#[tokio::test]
async fn a_command_takes_a_batch_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = command("echo $CELLHOOK_ADDED_ID >> order; test $CELLHOOK_ADDED_ID != 2");
    config.dir = Some(dir.path().to_owned());
    let handler = Config::Command(config).build(&trigger()).unwrap();
    let events = (1..=3).map(|n| event(n, &json!({}))).collect();
    let verdicts = handler.call(Call::new(events, PATIENCE)).await;
    assert_eq!(verdicts, [Verdict::done(), Verdict::failed("exit code 1"), Verdict::done()]);
    assert_eq!(std::fs::read_to_string(dir.path().join("order")).unwrap(), "1\n2\n3\n");
}
