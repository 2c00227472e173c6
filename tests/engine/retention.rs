//! Workers trim the logs that they hold by their retention, and no further than every trigger has come.

use super::*;
use cellhook::{
    cell::{AddedId, Consistency, Log},
    store::OpenError,
};
use futures_util::FutureExt;

const HOUR: Duration = Duration::from_hours(1);

/// Keeps `trips` for a time; opens the groups that are there.
fn keeps(time: Duration, groups: BTreeMap<Name, Arc<MemoryLedger>>) -> Option<Retention> {
    let groups = Arc::new(Mutex::new(groups));
    let open = move |group: Name| {
        let found = groups.lock().unwrap().get(&group).cloned();
        async move {
            let found = found.map(|ledger| ledger as Arc<dyn Ledger>);
            found.ok_or_else(|| OpenError::MissingTables { place: "here".into(), tables: vec![group.to_string()] })
        }
        .boxed()
    };
    Some(Retention { keep: BTreeMap::from([(name("trips"), time)]), every: HOUR, open: Arc::new(open) })
}

/// Cells in the log, and where the trims ended, over all shards.
async fn in_log(log: &MemoryLog) -> (u64, u64) {
    let (mut cells, mut trimmed) = (0, 0);
    for shard in log.datastore().all_shards() {
        let segments = log.page(shard, AddedId(0), u32::MAX, Consistency::Strong).await.unwrap();
        cells += segments.iter().map(|segment| u64::from(segment.n)).sum::<u64>();
        trimmed += log.tip(shard).await.unwrap().map_or(0, |tip| tip.trimmed_to.0);
    }
    (cells, trimmed)
}

#[tokio::test(start_paused = true)]
async fn what_is_old_and_finished_goes_and_the_cells_stay() {
    let group = Group::new(&[("trips", 16), ("rides", 1)]);
    let (handler, handled) = good();
    let (other, _) = good();
    let triggers = vec![spec("a", "trips", handler), spec("b", "rides", other)];
    let kept = keeps(6 * HOUR, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips", "rides"], 1 << 24, triggers).await;
    let log = &group.logs[&name("trips")];
    worker.put("trips", rows(200), 10).await;
    worker.put("rides", rows(10), 10).await;
    until(&handled, 200, 60 * SECOND).await;
    sleep(4 * HOUR).await;
    worker.put("trips", (200..300).map(|i| format!("row-{i}")), 10).await;
    sleep(HOUR).await;
    assert_eq!(in_log(log).await, (300, 0), "nothing is six hours old");
    // Six hours, and a turn.
    sleep(2 * HOUR + HOUR / 2).await;
    assert_eq!(in_log(log).await, (100, 200));
    sleep(5 * HOUR).await;
    assert_eq!(in_log(log).await, (0, 300));
    assert_eq!(in_log(&group.logs[&name("rides")]).await, (10, 0), "without a retention it is kept");
    let key = CellKey { row_key: "row-7".into(), column: "C".into(), ref_key: 7 };
    assert!(log.get(&key).await.unwrap().is_some(), "the cell itself stays");
    worker.put("trips", (300..310).map(|i| format!("row-{i}")), 10).await;
    until(&handled, 310, 60 * SECOND).await;
    worker.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_is_behind_keeps_the_log() {
    let group = Group::new(&[("trips", 4)]);
    let (handler, handled) = good();
    let mut stuck = spec("stuck", "trips", hanging());
    stuck.config.timeout = Duration::from_hours(100);
    let live = spec("live", "trips", handler);
    let kept = keeps(6 * HOUR, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, vec![live.clone(), stuck.clone()]).await;
    let log = &group.logs[&name("trips")];
    worker.put("trips", rows(50), 10).await;
    until(&handled, 50, 60 * SECOND).await;
    sleep(9 * HOUR).await;
    assert_eq!(in_log(log).await, (50, 0), "one of two has finished nothing");
    worker.leave().await;
    // The same trigger with a handler that works.
    let (cured, handled) = good();
    stuck.handler = cured;
    let kept = keeps(6 * HOUR, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, vec![live, stuck]).await;
    until(&handled, 50, 60 * SECOND).await;
    sleep(2 * HOUR).await;
    assert_eq!(in_log(log).await, (0, 50));
    worker.leave().await;
}

/// Another group has a trigger on the datastore: it keeps the log while it is behind, and while nobody can tell whether it is.
#[tokio::test(start_paused = true)]
async fn the_triggers_of_other_groups_keep_the_log() {
    let group = Group::new(&[("trips", 1)]);
    let far = Group { ledger: Arc::default(), logs: group.logs.clone() };
    let log = group.logs[&name("trips")].clone();
    log.enlist(&name("h")).await.unwrap();
    let (handler, handled) = good();
    let mine = vec![spec("mine", "trips", handler)];
    let kept = keeps(6 * HOUR, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, mine.clone()).await;
    worker.put("trips", rows(50), 10).await;
    until(&handled, 50, 60 * SECOND).await;
    sleep(9 * HOUR).await;
    assert_eq!(in_log(&log).await, (50, 0), "the other group cannot be asked");
    worker.leave().await;

    let mut theirs = spec("theirs", "trips", hanging());
    theirs.config.timeout = Duration::from_hours(100);
    let elsewhere = far.worker(&["trips"], 1 << 24, vec![theirs.clone()]).await;
    let kept = keeps(6 * HOUR, BTreeMap::from([(name("h"), far.ledger.clone())]));
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, mine).await;
    sleep(9 * HOUR).await;
    assert_eq!(in_log(&log).await, (50, 0), "the other group has finished nothing");
    elsewhere.leave().await;
    let (cured, called) = good();
    theirs.handler = cured;
    let elsewhere = far.worker(&["trips"], 1 << 24, vec![theirs]).await;
    until(&called, 50, 60 * SECOND).await;
    sleep(2 * HOUR).await;
    assert_eq!(in_log(&log).await, (0, 50));
    worker.leave().await;
    elsewhere.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_datastore_made_anew_is_not_trimmed() {
    let group = Group::new(&[("trips", 1)]);
    let (handler, handled) = good();
    let kept = keeps(6 * HOUR, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(50), 10).await;
    until(&handled, 50, 60 * SECOND).await;
    sleep(60 * SECOND).await;
    let log = group.logs[&name("trips")].clone();
    log.make_anew();
    log.enlist(&name("g")).await.unwrap();
    let writer = Cells::new(log.clone());
    for i in 0..40 {
        let key = CellKey { row_key: format!("new-{i}").into(), column: "C".into(), ref_key: 1 };
        writer.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
    }
    sleep(9 * HOUR).await;
    assert_eq!(in_log(&log).await, (40, 0), "the checkpoint of 50 is about other cells");
    worker.leave().await;
}

/// The owners of thousands of shards do not all delete in the same minute.
#[tokio::test(start_paused = true)]
async fn the_trims_of_many_shards_are_spread_over_the_hour() {
    let group = Group::new(&[("trips", 256)]);
    let (handler, handled) = good();
    let kept = keeps(SECOND, BTreeMap::new());
    let worker = group.worker_that_keeps(kept, &["trips"], 1 << 24, vec![spec("a", "trips", handler)]).await;
    worker.put("trips", rows(2560), 10).await;
    until(&handled, 2560, 60 * SECOND).await;
    let log = &group.logs[&name("trips")];
    let (mut before, mut parts) = (0, Vec::new());
    for _ in 0..7 {
        sleep(HOUR / 6).await;
        let now = in_log(log).await.1;
        parts.push(now - before);
        before = now;
    }
    assert_eq!(before, 2560, "{parts:?}");
    // Each shard has its own time of the hour from the moment on that it is held.
    assert!(parts[..5].iter().all(|part| (100..=900).contains(part)), "a sixth of them is 427: {parts:?}");
    worker.leave().await;
}
