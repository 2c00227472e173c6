//! The programs that users read first: the handler of `docs/handlers.md`, and `examples/bill_rider.py`.

use super::*;
use cellhook::cell::Latest;
use cellhook::handler::Config;
use futures_util::future::join_all;

const DOC: &str = include_str!("../../docs/handlers.md");

/// The one code block with this info string.
fn block(info: &str) -> String {
    let begin = DOC.find(&format!("```{info}\n")).unwrap_or_else(|| panic!("no block {info}"));
    let block: Vec<&str> = DOC[begin..].lines().skip(1).take_while(|line| *line != "```").collect();
    block.join("\n")
}

#[tokio::test]
async fn the_shortest_child_works() {
    let handler = exec_config(&["python3", "-c", &block("python child")]).build(&trigger()).unwrap();
    assert_eq!(call(&handler, 1, json!({})).await, Verdict::done());
    let events = (2..5).map(|n| event(n, &json!({}))).collect();
    let verdicts = handler.clone().call(Call::new(events, PATIENCE)).await;
    assert_eq!(verdicts, vec![Verdict::done(); 3]);
    assert_eq!(handler.counts().faults, 0);
    handler.stop().await;
}

#[tokio::test]
async fn the_command_of_the_contract_works() {
    let config = cellhook::handler::CommandConfig {
        // A variable that is not set is an error.
        command: ["sh", "-euc", &block("sh command")].map(str::to_owned).to_vec(),
        dir: None,
        env: BTreeMap::new(),
        env_pass: vec!["PATH".to_owned()],
    };
    let handler = Config::Command(config).build(&trigger()).unwrap();
    let verdicts = handler.call(Call::new(vec![event(1, &json!({}))], PATIENCE)).await;
    assert_eq!(verdicts, [Verdict::done()]);
}

/// A trip whose row has this STATUS.
fn trip(added_id: u64, body: &Value, status: Option<&str>) -> Event {
    let mut event = event(added_id, body);
    let status = status.map(|body| (1, body.into()));
    event.latest = Arc::new([Latest { column: "STATUS".into(), cell: status }]);
    event
}

fn bill_rider(failures: &str) -> Arc<Exec> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bill_rider.py");
    let mut config = exec_config(&["python3", script]);
    config.env.insert("BILL_RIDER_SEED".to_owned(), "1".to_owned());
    config.env.insert("BILL_RIDER_FAILURES".to_owned(), failures.to_owned());
    config.build(&trigger()).unwrap()
}

#[tokio::test]
async fn bill_rider_bills_a_trip_once() {
    let handler = bill_rider("0");
    let fare = json!({"fare": 12});
    let verdict = call_event(&handler, trip(1, &fare, None), PATIENCE).await;
    let Verdict::Done { put } = &verdict else { panic!("not billed: {verdict:?}") };
    let [status] = &put[..] else { panic!("one cell: {put:?}") };
    assert_eq!((&*status.column, &status.row_key, status.ref_key), ("STATUS", &None, None));
    let body: Value = serde_json::from_str(&status.body).unwrap();
    assert_eq!(body, json!({"is_completed": true, "result": {"charged": 12, "receipt": "trips/k3v9/5/1"}}));

    // The next time the row has that cell.
    let billed = trip(1, &fare, Some(&status.body));
    assert_eq!(call_event(&handler, billed, PATIENCE).await, Verdict::done());
    let open = trip(2, &fare, Some(r#"{"is_completed": false}"#));
    assert!(matches!(call_event(&handler, open, PATIENCE).await, Verdict::Done { put } if put.len() == 1));
    let status_of_another = trip(3, &fare, Some("17"));
    assert!(matches!(call_event(&handler, status_of_another, PATIENCE).await, Verdict::Done { put } if put.len() == 1));
    for (added_id, body) in (4..).zip([json!({"fare": "a lot"}), json!({"fare": true}), json!({}), json!([]), json!(7)])
    {
        let wrong = call_event(&handler, trip(added_id, &body, None), PATIENCE).await;
        assert!(matches!(&wrong, Verdict::DeadLetter { error } if error.contains("a number as its fare")), "{wrong:?}");
    }
    assert_eq!(handler.counts().faults, 0);
    handler.stop().await;
}

#[tokio::test]
async fn bill_rider_fails_now_and_then() {
    let handler = bill_rider("0.2");
    let fare = json!({"fare": 12});
    let verdicts = join_all((1..=100).map(|n| call_event(&handler, trip(n, &fare, None), PATIENCE))).await;
    let failed = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Failed { .. })).count();
    assert!((5..=40).contains(&failed), "{failed} of 100");
    // With a seed, the same ones.
    let other = bill_rider("0.2");
    let again = join_all((1..=100).map(|n| call_event(&other, trip(n, &fare, None), PATIENCE))).await;
    assert_eq!(verdicts, again);
    handler.stop().await;
    other.stop().await;
}
