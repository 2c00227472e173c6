//! The control table is out of reach, and the log is not: what a worker does then, as its user chose.

use super::*;
use cellhook::{
    cell::{
        AddedId, Answer, Checkpoint, ErrorKind, Incarnation, Lane, LaneChange, Lease, LeaseWrite, Nudge, Out, Parked,
        Session, SessionId, SessionState, ShardRef, StoreError, TriggerId, TriggerRecord, Written,
    },
    lease::OnControlOutage,
};
use std::collections::BTreeSet;

const WINDOW: u32 = 200;

/// The way of one worker to the group's tables.
struct Way {
    ledger: Arc<MemoryLedger>,
    cut: AtomicBool,
}

impl Way {
    fn to(group: &Group) -> Arc<Self> {
        Arc::new(Self { ledger: group.ledger.clone(), cut: AtomicBool::new(false) })
    }

    /// No answer, late.
    fn lost<'a, T: Send + 'a>() -> Out<'a, T> {
        Box::pin(async {
            sleep(2 * SECOND).await;
            let (kind, table) = (ErrorKind::Unanswered, "g.control".into());
            Err(StoreError { kind, table, operation: "UpdateItem", source: None })
        })
    }
}

/// Makes a request, unless the way is cut.
macro_rules! way {
    ($($name:ident($($arg:ident: $of:ty),*) -> $answer:ty;)*) => {
        impl Ledger for Way {
            $(fn $name<'a>(&'a self, $($arg: $of),*) -> Out<'a, $answer> {
                if self.cut.load(SeqCst) { Self::lost() } else { self.ledger.$name($($arg),*) }
            })*
        }
    };
}

way! {
    open_session(session: &'a Session) -> Answer<Session>;
    beat(id: &'a SessionId, at: Millis) -> Answer<Session>;
    set_state(id: &'a SessionId, state: SessionState) -> Answer<Session>;
    declare_dead(id: &'a SessionId, seen: Option<u64>) -> Answer<Session>;
    nudge(id: &'a SessionId, about: Nudge) -> ();
    sessions() -> Vec<Session>;
    forget_session(id: &'a SessionId) -> ();
    triggers() -> Vec<TriggerRecord>;
    retired(id: &'a TriggerId) -> Option<TriggerRecord>;
    register(record: &'a TriggerRecord) -> Answer<TriggerRecord>;
    update_trigger(record: &'a TriggerRecord) -> Answer<TriggerRecord>;
    rename_trigger(record: &'a TriggerRecord, to: &'a Name) -> Answer<TriggerRecord>;
    free_name(record: &'a TriggerRecord, name: &'a Name) -> Answer<TriggerRecord>;
    leases(source: &'a Name) -> Vec<Lease>;
    lease(shard: &'a ShardRef) -> Option<Lease>;
    claim(
        shard: &'a ShardRef,
        incarnation: &'a Incarnation,
        me: &'a SessionId,
        seen: Option<&'a Lease>,
        at: Millis
    ) -> Answer<Lease>;
    write(write: &'a LeaseWrite) -> Written;
    operate(seen: &'a Lease, trigger: &'a TriggerId, checkpoint: &'a Checkpoint) -> Answer<Lease>;
    forget_checkpoint(shard: &'a ShardRef, trigger: &'a TriggerId) -> ();
    parked(lane: &'a Lane, after: AddedId, limit: usize) -> Vec<Parked>;
    all_parked(after: Option<&'a Parked>, limit: usize) -> Vec<Parked>;
    operate_parked(changes: &'a [LaneChange]) -> bool;
}

/// A worker that goes that way, and what it handles.
async fn worker(group: &Group, way: &Arc<Way>, outage: OnControlOutage) -> (Running, Handled) {
    let (handler, handled) = good();
    let mut spec = spec("a", "trips", handler);
    spec.config.window.cells = WINDOW;
    let running = group.worker_as(&["trips"], 1 << 24, vec![spec], |setup| {
        setup.ledger = way.clone();
        setup.lease.on_control_outage = outage;
    });
    (running.await, handled)
}

/// Ten cells a second, for so long; as many rows.
async fn trickle(writer: &Cells, rows: &mut BTreeSet<String>, time: Duration) {
    for _ in 0..time.as_millis() / 100 {
        let row = format!("row-{}", rows.len());
        let key = CellKey { row_key: row.clone().into(), column: "C".into(), ref_key: 1 };
        writer.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
        rows.insert(row);
        sleep(SECOND / 10).await;
    }
}

fn distinct(handled: &[&Handled]) -> BTreeSet<String> {
    handled.iter().flat_map(|of| of.lock().unwrap().iter().map(|(row, _)| row.clone()).collect::<Vec<_>>()).collect()
}

fn calls(handled: &Handled, from: Instant, to: Instant) -> usize {
    handled.lock().unwrap().iter().filter(|(_, at)| *at >= from && *at < to).count()
}

#[tokio::test(start_paused = true)]
async fn past_the_safe_time_calls_stop_or_go_on_to_the_window_as_the_user_chose() {
    for outage in [OnControlOutage::Stop, OnControlOutage::Continue] {
        let group = Group::new(&[("trips", 1)]);
        let (way, writer) = (Way::to(&group), Cells::new(group.logs[&name("trips")].clone()));
        let (worker, handled) = worker(&group, &way, outage).await;
        let mut rows = BTreeSet::new();
        trickle(&writer, &mut rows, 20 * SECOND).await;
        let cut = Instant::now();
        way.cut.store(true, SeqCst);
        trickle(&writer, &mut rows, 60 * SECOND).await;
        let lease::Config { session, heartbeat, .. } = lease::Config::default();
        let (safe, healed) = (cut + (session - heartbeat), Instant::now());
        let (within, past) = (calls(&handled, cut, safe), calls(&handled, safe, healed));
        match outage {
            OnControlOutage::Stop => assert_eq!(past, 0),
            // Some were finished and in no checkpoint before the cut.
            OnControlOutage::Continue => {
                assert!(past > 60, "{past} calls past the safe time");
                let most = WINDOW as usize;
                assert!((most - 30..=most).contains(&(within + past)), "{within} and {past} fill a window");
            }
        }
        way.cut.store(false, SeqCst);
        sleep(60 * SECOND).await;
        assert_eq!(distinct(&[&handled]), rows, "nothing is lost");
        assert_eq!(handled.lock().unwrap().len(), rows.len(), "nobody declared it dead, and nothing runs twice");
        worker.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_calls_on_while_others_take_its_shards_repeats_no_more_than_a_window_each() {
    let group = Group::new(&[("trips", 4)]);
    let (cut_off, way) = (Way::to(&group), Way::to(&group));
    let writer = Cells::new(group.logs[&name("trips")].clone());
    let (first, of_first) = worker(&group, &cut_off, OnControlOutage::Continue).await;
    let (second, of_second) = worker(&group, &way, OnControlOutage::Continue).await;
    let mut rows = BTreeSet::new();
    trickle(&writer, &mut rows, 60 * SECOND).await;
    let shards = |worker: &Running| worker.watch.view.borrow().grants.len();
    assert_eq!((shards(&first), shards(&second)), (2, 2));
    let cut = Instant::now();
    cut_off.cut.store(true, SeqCst);
    trickle(&writer, &mut rows, 40 * SECOND).await;
    assert_eq!(shards(&second), 4, "the others cannot know that it goes on");
    let taken = cut + 20 * SECOND;
    assert!(calls(&of_first, taken, Instant::now()) > 50, "it goes on for shards that are another's");
    cut_off.cut.store(false, SeqCst);
    trickle(&writer, &mut rows, 60 * SECOND).await;
    sleep(30 * SECOND).await;
    assert_eq!(distinct(&[&of_first, &of_second]), rows, "nothing is lost");
    let repeats = of_first.lock().unwrap().len() + of_second.lock().unwrap().len() - rows.len();
    let leases = group.ledger.leases(&name("trips")).await.unwrap();
    let changes: u64 = leases.iter().map(|lease| lease.epoch.0 - 1).sum();
    assert!(repeats > 50, "{repeats} repeats: they were called for by both");
    assert!(repeats as u64 <= changes * u64::from(WINDOW), "{repeats} repeats with {changes} changes of owner");
    first.leave().await;
    second.leave().await;
}
