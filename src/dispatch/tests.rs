//! The cursor's decisions, told and asked without any I/O.

use super::{Budget, Config, Cursor, Ended, Exhausted, Item, May, Next, Now, Order, Trigger, WindowConfig, attempt};
use crate::{
    cell::{
        AddedId, Call, Cell, CellKey, Checkpoint, Epoch, Handler, LaneChange, Log, Millis, Name, NewCell, NewDatastore,
        ParkedState, ShardId, ShardRef, TriggerId, TriggerRecord, TriggerState, Verdict,
    },
    filter::Filter,
    store::{Cells, memory::MemoryLog},
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

struct Nobody;

impl Handler for Nobody {
    fn call(self: Arc<Self>, _: Call) -> BoxFuture<'static, Vec<Verdict>> {
        Box::pin(std::future::pending())
    }
}

/// A cursor and its clock.
struct Bench {
    cursor: Cursor,
    now: Now,
    record: TriggerRecord,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl Bench {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_memory(1 << 30, change)
    }

    fn with_memory(memory: u64, change: impl FnOnce(&mut Config)) -> Self {
        let log = Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards: 1 }));
        let record = TriggerRecord {
            id: TriggerId::from_stored("t"),
            name: name("bill"),
            formerly: Default::default(),
            source: name("trips"),
            incarnation: log.datastore().incarnation.clone(),
            state: TriggerState::Active,
            generation: 0,
            start: None,
            revision: 0,
        };
        let mut config = Config { breaker: None, ..Config::new(name("trips")) };
        change(&mut config);
        let filter = Filter::new(&config.columns, config.filter.as_deref()).unwrap();
        let trigger = Trigger::new(
            name("bill"),
            record.clone(),
            config,
            filter,
            Arc::new(Nobody),
            Cells::new(log),
            Budget::new(memory).share(),
        );
        let shard = ShardRef { source: name("trips"), shard: ShardId(0) };
        let cursor = Cursor::new(Arc::new(trigger), shard, &Checkpoint::default()).unwrap();
        Self { cursor, now: Now { instant: Instant::now(), wall: Millis(1_000_000) }, record }
    }

    /// Cells of these rows, from the next place on.
    fn admit(&mut self, rows: &[&str]) {
        self.admit_with(rows, "{\"fare\":1}");
    }

    /// The same with a body; without one, they were erased.
    fn admit_with(&mut self, rows: &[&str], body: &str) {
        let cells: Vec<(&str, &str)> = rows.iter().map(|row| (*row, "BASE")).collect();
        self.admit_cells(&cells, body);
    }

    /// Cells of these rows and columns.
    fn admit_cells(&mut self, cells: &[(&str, &str)], body: &str) {
        let first = self.cursor.at().0 + 1;
        let cell = |((row, column), added_id): (&(&str, &str), u64)| Cell {
            key: CellKey { row_key: (*row).into(), column: (*column).into(), ref_key: added_id },
            shard: ShardId(0),
            added_id: AddedId(added_id),
            created_at: self.now.wall,
            body: body.into(),
        };
        let cells: Vec<Cell> = cells.iter().zip(first..).map(cell).collect();
        self.cursor.admit(&cells, 1000, self.now);
    }

    /// Everything that may be called now.
    fn called(&mut self) -> Vec<Item> {
        let mut all = Vec::new();
        while let Some((items, _)) = self.cursor.take(self.now) {
            all.extend(items);
        }
        all
    }

    fn ids(&mut self) -> Vec<u64> {
        let items = self.called();
        let ids = items.iter().map(|item| item.added_id.0).collect();
        for item in items {
            self.settle(item, Verdict::done());
        }
        ids
    }

    fn settle(&mut self, item: Item, verdict: Verdict) {
        self.cursor.settle(Ended { item, verdict, called: true }, false, self.now);
    }

    fn later(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall.0 += i64::try_from(time.as_millis()).unwrap();
        self.cursor.wake(self.now);
    }

    /// Writes until all is durable.
    fn write(&mut self) -> (Checkpoint, Vec<LaneChange>) {
        let mut all = Vec::new();
        loop {
            let (checkpoint, changes) = self.cursor.fill(90);
            all.extend(changes);
            self.cursor.written(self.now);
            if self.cursor.is_clean() {
                return (checkpoint, all);
            }
        }
    }
}

fn failed(after: u64) -> Verdict {
    Verdict::Failed { error: "no".into(), retry_after: Some(Duration::from_secs(after)) }
}

#[tokio::test(start_paused = true)]
async fn a_row_is_called_in_order_and_rows_side_by_side() {
    let mut bench = Bench::new(|_| {});
    bench.admit(&["a", "a", "b", "a"]);
    assert_eq!(bench.ids(), [1, 3]);
    assert_eq!(bench.ids(), [2]);
    assert_eq!(bench.cursor.low(), AddedId(3));
    assert_eq!(bench.ids(), [4]);
    assert_eq!(bench.write().0.low, AddedId(4));
}

#[tokio::test(start_paused = true)]
async fn the_window_bounds_what_a_new_owner_would_call_again() {
    let mut bench = Bench::new(|config| config.window = WindowConfig { cells: 4, bytes: 1 << 20 });
    bench.admit(&["a", "b", "c", "d", "e", "f"]);
    assert_eq!(bench.cursor.at(), AddedId(4), "no more is taken in");
    assert_eq!(bench.ids(), [1, 2, 3, 4]);
    bench.admit(&["e", "f"]);
    assert_eq!(bench.cursor.at(), AddedId(4), "finished cells count until their checkpoint is durable");
    bench.write();
    bench.admit(&["e", "f"]);
    assert_eq!(bench.ids(), [5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_long_retry_is_parked_with_what_waits_behind_it_and_the_checkpoint_moves() {
    let mut bench = Bench::new(|_| {});
    bench.admit(&["a", "a", "b"]);
    let mut items = bench.called();
    let (b, a) = (items.pop().unwrap(), items.pop().unwrap());
    bench.settle(b, Verdict::done());
    bench.settle(a, failed(60));
    bench.admit(&["a"]);
    let (checkpoint, changes) = bench.write();
    assert_eq!(checkpoint.low, AddedId(4));
    let states: Vec<_> = changes
        .iter()
        .map(|change| match change {
            LaneChange::Put(parked) => (parked.added_id.0, parked.state),
            other => panic!("{other:?}"),
        })
        .collect();
    use ParkedState::{Retrying, Waiting};
    assert_eq!(states, [(1, Retrying), (2, Waiting), (4, Waiting)]);
    assert_eq!(bench.ids(), [0; 0]);
    bench.later(Duration::from_secs(61));
    assert_eq!((bench.ids(), bench.ids(), bench.ids()), (vec![1], vec![2], vec![4]), "in order when it is due");
    let (_, changes) = bench.write();
    assert!(
        changes.len() == 3 && changes.iter().all(|change| matches!(change, LaneChange::Delete(p) if p.revision > 0))
    );
}

/// Found by the simulation: a new owner calls what lies in the lane before it reads what waits in the window.
#[tokio::test(start_paused = true)]
async fn nothing_is_parked_behind_a_cell_of_its_row_that_found_no_room() {
    // A quarter is for parked cells: two of them, and not one with a long name.
    let mut bench = Bench::with_memory(6000, |_| {});
    bench.admit(&["a"]);
    let head = bench.called().pop().unwrap();
    bench.settle(head, failed(60));
    bench.admit_cells(&[("a", &"long".repeat(50)), ("a", "BASE"), ("b", "BASE")], "1");
    let (checkpoint, changes) = bench.write();
    assert!(matches!(&changes[..], [LaneChange::Put(parked)] if parked.added_id == AddedId(1)), "{changes:?}");
    assert_eq!(checkpoint.low, AddedId(1));
    assert_eq!(bench.ids(), [4], "another row goes on");
    bench.later(Duration::from_secs(61));
    assert_eq!((bench.ids(), bench.ids(), bench.ids()), (vec![1], vec![2], vec![3]));
}

#[tokio::test(start_paused = true)]
async fn too_many_behind_a_retrying_cell_exhaust_it() {
    let mut bench = Bench::new(|config| config.max_waiting = 2);
    bench.admit(&["a"]);
    let item = bench.called().pop().unwrap();
    bench.settle(item, failed(600));
    bench.admit(&["a", "a", "a"]);
    assert_eq!(bench.cursor.dead(), 1);
    assert_eq!((bench.ids(), bench.ids()), (vec![2], vec![3]), "the next of the row come");
}

#[tokio::test(start_paused = true)]
async fn exhausted_cells_are_parked_dropped_or_block() {
    for policy in [Exhausted::Park, Exhausted::Drop, Exhausted::Block] {
        let mut bench = Bench::new(|config| {
            config.retry.attempts = Some(2);
            config.exhausted = policy;
        });
        bench.admit(&["a", "a"]);
        for _ in 0..2 {
            let item = bench.called().pop().unwrap();
            bench.settle(item, failed(1));
            bench.later(Duration::from_secs(2));
        }
        let next = bench.ids();
        let (checkpoint, changes) = bench.write();
        let dead = changes.iter().filter(|c| matches!(c, LaneChange::Put(p) if p.state == ParkedState::Dead)).count();
        match policy {
            Exhausted::Park => assert_eq!((next, checkpoint.low, dead), (vec![2], AddedId(2), 1)),
            Exhausted::Drop => assert_eq!((next, checkpoint.low, dead), (vec![2], AddedId(2), 0)),
            Exhausted::Block => assert_eq!((next, dead), (vec![], 0), "its row waits"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_dead_cells_pause_the_shard_until_the_trigger_is_resumed() {
    let mut bench = Bench::new(|config| config.max_parked = 1);
    bench.admit(&["a", "b", "c"]);
    let mut items = bench.called();
    let last = items.pop().unwrap();
    for item in items {
        bench.settle(item, Verdict::DeadLetter { error: "never".into() });
    }
    assert!(bench.cursor.pause().unwrap().contains("max_parked"));
    bench.settle(last, failed(0));
    bench.later(Duration::from_secs(1));
    assert_eq!(bench.cursor.next(bench.now), Next::Idle);
    assert!(bench.write().0.paused.is_some(), "the pause is stored");
    bench.record.generation = 1;
    bench.cursor.follow(&bench.record);
    assert_eq!(bench.ids(), [3]);
    assert_eq!(bench.write().0.dead, 0, "counted anew");
}

/// What was finished last is not what is unfinished, however long it is ago.
#[tokio::test(start_paused = true)]
async fn the_oldest_unfinished_cell_is_none_that_is_finished() {
    let mut bench = Bench::new(|config| config.window.cells = 4);
    let first = bench.now.wall;
    bench.admit(&["a", "b"]);
    assert_eq!(bench.cursor.oldest(), Some(first));
    bench.ids();
    bench.write();
    assert_eq!(bench.cursor.oldest(), None, "all is finished");
    bench.later(Duration::from_secs(100));
    let paused = TriggerRecord { state: TriggerState::Paused { reason: "why".into() }, ..bench.record.clone() };
    bench.cursor.follow(&paused);
    // A paused trigger reads nothing of what comes next, but learns how old it is.
    assert_eq!(bench.cursor.is_curious(AddedId(2)), None, "there is nothing");
    assert_eq!(bench.cursor.is_curious(AddedId(3)), Some(AddedId(2)));
    let second = bench.now.wall;
    bench.cursor.learn_nothing(bench.now);
    assert_eq!(bench.cursor.oldest(), Some(second));
    bench.later(Duration::from_secs(100));
    assert_eq!(bench.cursor.is_curious(AddedId(3)), None, "learned once");
    assert_eq!(bench.cursor.oldest(), Some(second));
    bench.record.revision += 1;
    bench.cursor.follow(&bench.record.clone());
    bench.admit(&["a"]);
    assert_eq!(bench.ids(), [3]);
    bench.write();
    assert_eq!(bench.cursor.oldest(), None);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_was_interrupted_twice_comes_alone() {
    let mut bench = Bench::new(|config| config.batch = 3);
    bench.admit(&["a", "b", "c"]);
    for _ in 0..2 {
        let (items, _) = bench.cursor.take(bench.now).unwrap();
        assert_eq!(items.len(), 3);
        for item in items {
            let verdict = if item.added_id == AddedId(1) {
                Verdict::Interrupted { error: "the child ended".into() }
            } else {
                Verdict::Snooze { after: Duration::from_millis(100) }
            };
            bench.settle(item, verdict);
        }
        bench.later(Duration::from_secs(1));
    }
    let (items, _) = bench.cursor.take(bench.now).unwrap();
    assert_eq!((items.len(), items[0].interruptions, items[0].attempts), (1, 2, 0), "alone, and it cost no attempt");
}

#[tokio::test(start_paused = true)]
async fn strict_order_waits_for_its_head_however_long() {
    let mut bench = Bench::new(|config| config.order = Order::Shard);
    bench.admit(&["a", "b"]);
    let item = bench.called().pop().unwrap();
    bench.settle(item, failed(3600));
    let (checkpoint, changes) = bench.write();
    assert_eq!((checkpoint.low, changes.len()), (AddedId(0), 0), "nothing is parked past it");
    bench.later(Duration::from_secs(3599));
    assert_eq!(bench.ids(), [0; 0]);
    bench.later(Duration::from_secs(1));
    assert_eq!((bench.ids(), bench.ids()), (vec![1], vec![2]));
}

#[tokio::test(start_paused = true)]
async fn attempts_and_finished_cells_travel_with_the_checkpoint() {
    let mut bench = Bench::new(|_| {});
    bench.admit(&["a", "b", "c"]);
    let mut items = bench.called();
    bench.settle(items.pop().unwrap(), Verdict::done());
    bench.settle(items.pop().unwrap(), failed(1));
    let (checkpoint, _) = bench.write();
    let trigger = bench.cursor.trigger().clone();
    let shard = ShardRef { source: name("trips"), shard: ShardId(0) };
    bench.cursor = Cursor::new(trigger, shard, &checkpoint).unwrap();
    bench.admit(&["a", "b", "c"]);
    let items = bench.called();
    let called: Vec<_> = items.iter().map(|item| (item.added_id.0, item.attempts)).collect();
    assert_eq!(called, [(1, 0), (2, 1)], "the third is finished, the second has one attempt behind it");
}

#[tokio::test(start_paused = true)]
async fn a_filter_that_fails_parks_the_cell_and_passes_none_over() {
    let mut bench = Bench::new(|config| config.filter = Some("data.body.nothing > 1".into()));
    bench.admit(&["a"]);
    assert_eq!(bench.ids(), [0; 0]);
    let (checkpoint, changes) = bench.write();
    assert_eq!(checkpoint.low, AddedId(1));
    assert!(
        matches!(&changes[..], [LaneChange::Put(p)] if p.state == ParkedState::Dead && p.errors[0].contains("nothing"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_erased_cell_is_passed_without_a_call_and_holds_nobody_up() {
    let mut bench = Bench::new(|config| config.filter = Some("data.body.fare > 0.0".into()));
    bench.admit(&["a"]);
    bench.admit_with(&["a", "b"], "");
    bench.admit(&["a"]);
    let items = bench.called();
    assert_eq!(items.len(), 1, "the first; the fourth waits behind it, and the erased ones are not called for");
    let (checkpoint, _) = bench.write();
    assert_eq!(checkpoint.low, AddedId(0), "nothing is passed over");
    bench.settle(items.into_iter().next().unwrap(), Verdict::done());
    assert_eq!(bench.ids(), [4]);
    let (checkpoint, changes) = bench.write();
    assert_eq!((checkpoint.low, changes.len()), (AddedId(4), 0));
}

/// A cell fails, is parked and erased; when it is due, it leaves the lane and lets the next of its row come.
#[tokio::test(start_paused = true)]
async fn a_parked_cell_that_was_erased_leaves_its_lane_without_a_call() {
    let mut bench = Bench::new(|_| {});
    let cells = bench.cursor.trigger().cells.clone();
    let put = async |ref_key| {
        let key = CellKey { row_key: "a".into(), column: "BASE".into(), ref_key };
        let cell = NewCell { key: key.clone(), body: "1".into(), origin: None };
        assert!(cells.put(vec![cell]).await[0].is_ok());
        key
    };
    let (first, _) = (put(1).await, put(2).await);
    bench.admit(&["a", "a"]);
    let item = bench.called().pop().unwrap();
    bench.settle(item, failed(60));
    bench.write();
    assert!(cells.log().erase_cell(&first).await.unwrap());
    bench.later(Duration::from_secs(61));
    let (items, probe) = bench.cursor.take(bench.now).unwrap();
    assert_eq!(items[0].added_id, AddedId(1));
    let trigger = bench.cursor.trigger().clone();
    let permit = trigger.slots.clone().acquire_owned().await.unwrap();
    // `Nobody` never answers: a call would not end.
    let attempted = attempt(trigger, 0, Epoch(1), items, probe, permit, May::default()).await;
    for ended in attempted.items {
        assert!(!ended.called);
        bench.cursor.settle(ended, probe, bench.now);
    }
    let (_, changes) = bench.write();
    assert!(matches!(&changes[..], [LaneChange::Delete(parked)] if parked.added_id == AddedId(1)), "{changes:?}");
    assert_eq!(bench.ids(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_lingers_until_it_is_full_or_its_time_is_over() {
    let mut bench = Bench::new(|config| {
        config.batch = 3;
        config.linger = Duration::from_millis(50);
    });
    bench.admit(&["a", "b"]);
    assert_eq!(bench.cursor.next(bench.now), Next::At(bench.now.instant + Duration::from_millis(50)));
    bench.admit(&["c"]);
    assert_eq!(bench.cursor.take(bench.now).unwrap().0.len(), 3, "full");
    bench.admit(&["d"]);
    bench.later(Duration::from_millis(50));
    assert_eq!(bench.cursor.take(bench.now).unwrap().0.len(), 1, "its time is over");
}

/// A cell on which the filter fails is parked at once; it never held its row.
#[tokio::test(start_paused = true)]
async fn a_cell_on_which_the_filter_fails_lets_nobody_of_its_row_pass_another() {
    let mut bench = Bench::new(|config| config.filter = Some("data.body.fare > 0.0".into()));
    bench.admit(&["a"]);
    let first = bench.called();
    bench.admit_with(&["a"], "{}");
    bench.admit(&["a"]);
    assert_eq!(bench.called().len(), 0, "the first one is still in flight");
    for item in first {
        bench.settle(item, Verdict::done());
    }
    assert_eq!(bench.ids(), [3]);
    assert_eq!(bench.write().0.low, AddedId(3));
}

/// Owners died, and the cursor begins where they did.
fn on_trial(deaths: u64, tip: u64, change: impl FnOnce(&mut Config)) -> Bench {
    let mut bench = Bench::new(change);
    bench.cursor.on_trial(deaths, AddedId(tip), bench.now);
    bench
}

#[tokio::test(start_paused = true)]
async fn a_trial_lasts_until_all_that_the_dead_may_have_had_in_flight_was_called() {
    let mut bench = on_trial(2, 3, |_| {});
    assert!(bench.cursor.is_suspect(), "nothing is read yet");
    bench.admit(&["a", "a", "b", "c"]);
    let items = bench.called();
    assert_eq!(items.iter().map(|item| item.added_id.0).collect::<Vec<_>>(), [1, 3, 4]);
    for item in items {
        assert!(bench.cursor.is_suspect());
        bench.settle(item, failed(5));
    }
    assert!(bench.cursor.is_suspect(), "the second of its row was not called");
    assert_eq!(bench.write().0.outlived, 0);
    bench.later(Duration::from_secs(6));
    bench.ids();
    assert!(bench.cursor.is_suspect());
    bench.ids();
    assert!(!bench.cursor.is_suspect());
    assert_eq!((bench.cursor.deaths(), bench.write().0.outlived), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_trial_is_no_longer_than_a_window() {
    let mut bench = on_trial(2, 1000, |config| config.window.cells = 2);
    bench.admit(&["a", "b", "c", "d"]);
    assert_eq!(bench.ids(), [1, 2]);
    assert!(!bench.cursor.is_suspect());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_against_a_cursor_without_undone_cells_or_with_one_death() {
    assert!(!on_trial(9, 0, |_| {}).cursor.is_suspect());
    let mut bench = on_trial(1, 5, |_| {});
    assert_eq!((bench.cursor.deaths(), bench.cursor.is_suspect()), (1, false));
    bench.admit(&["a", "b", "c", "d", "e"]);
    bench.ids();
    assert_eq!(bench.write().0.outlived, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_kills_is_put_aside_when_it_is_met() {
    let mut bench = Bench::new(|_| {});
    bench.cursor.quarantine(AddedId(2), 4, bench.now);
    bench.cursor.on_trial(4, AddedId(3), bench.now);
    assert!(bench.cursor.condemns(AddedId(2)));
    bench.admit(&["a", "a", "a"]);
    assert!(bench.cursor.condemns(AddedId(2)), "not written yet");
    assert_eq!(bench.ids(), [1]);
    assert_eq!(bench.ids(), [3], "it blocks nobody, and nobody passed another");
    let (checkpoint, changes) = bench.write();
    assert_eq!(checkpoint.low, AddedId(3));
    let [LaneChange::Put(dead)] = &*changes else { panic!("{changes:?}") };
    assert_eq!((dead.added_id, dead.state, dead.attempts), (AddedId(2), ParkedState::Dead, 1));
    assert!(dead.errors[0].starts_with("4 workers died"));
    assert!(!bench.cursor.condemns(AddedId(2)));
}
