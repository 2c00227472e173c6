//! A shard task that hangs, on real threads: it alone is aborted, and while it does not end the watchdog goes hungry.

use cellhook::{
    cell::{CellKey, Event, Ledger, Name, NewCell, NewDatastore, ShardId, ShardRef, Verdict, planted},
    dispatch::Config,
    handler::handler_fn,
    lease::{self, Identity},
    metrics,
    process::Manager,
    store::{
        Cells,
        memory::{MemoryLedger, MemoryLog},
    },
    tail,
    worker::{Setup, Stuck, TriggerSpec, Worker},
};
use std::{
    collections::BTreeMap,
    os::unix::net::UnixDatagram,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a machine that works.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where the handler's thread is held up.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
}

/// What was called: row, shard, epoch.
type Calls = Arc<Mutex<Vec<(String, ShardId, u64)>>>;

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let all = async {
        while !so() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, all).await.is_ok(), "{what}");
}

fn aborted() -> u64 {
    let page = metrics::gather();
    let line = page.lines().find_map(|line| line.strip_prefix("cellhook_shard_tasks_aborted_total "));
    line.unwrap().parse().unwrap()
}

fn notices(socket: &UnixDatagram) -> usize {
    let mut buffer = [0; 64];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

async fn put(cells: &Cells, row: &str) {
    let key = CellKey { row_key: row.into(), column: "C".into(), ref_key: 1 };
    cells.put(vec![NewCell { key, body: "1".into(), origin: None }]).await[0].as_ref().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_task_that_hangs_is_aborted_alone_and_while_it_does_not_end_the_watchdog_is_not_fed() {
    planted::plant("rounds of a second");
    let name = |text| Name::new(text).unwrap();
    let cells = Cells::new(Arc::new(MemoryLog::new(&NewDatastore { name: name("trips"), shards: 8 })));
    let ledger = Arc::new(MemoryLedger::default());
    let (gate, calls) = (Arc::new(Gate::default()), Calls::default());
    let handler = {
        let (gate, calls) = (gate.clone(), calls.clone());
        handler_fn(move |event: Event| {
            let row = event.cell.key.row_key.to_string();
            calls.lock().unwrap().push((row.clone(), event.cell.shard, event.epoch.0));
            if row.starts_with("bad") {
                gate.pass();
            }
            async { Verdict::done() }
        })
    };
    let setup = Setup {
        lease: lease::Config::default(),
        poll: tail::Config { floor: Duration::from_millis(10), ceiling: Duration::from_millis(200) },
        checkpoint_interval: Duration::from_millis(100),
        memory: 1 << 24,
        group: name("g"),
        ledger: ledger.clone(),
        presence: None,
        identity: Identity::default(),
        sources: BTreeMap::from([(name("trips"), cells.clone())]),
        triggers: vec![TriggerSpec { name: name("hangs"), config: Config::new(name("trips")), handler }],
        retention: None,
        wrap: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut manager = Manager::at(dir.path().join("notify").as_os_str(), Some(Duration::from_millis(300))).unwrap();
    let worker = Worker::new(setup).await.unwrap();
    let (watch, stop) = (worker.watch(), CancellationToken::new());
    let (_reloads, reload) = mpsc::channel(1);
    let work = worker.run(stop.clone(), reload);
    let feeder = async {
        loop {
            manager.hungry().await;
            manager.feed(&watch.stuck());
        }
    };
    let called = |row: &str| {
        let of_row = |(called, ..): &&(String, ShardId, u64)| called == row;
        calls.lock().unwrap().iter().filter(of_row).map(|(_, shard, epoch)| (*shard, *epoch)).collect::<Vec<_>>()
    };
    let scenario = async {
        let others = |prefix: &str| (0..40).map(|i| format!("{prefix}-{i}")).collect::<Vec<String>>();
        let before = aborted();
        put(&cells, "bad-1").await;
        until("it hangs", || called("bad-1").len() == 1).await;
        until("it is aborted", || aborted() > before).await;
        gate.set(true);
        until("its shard is claimed anew", || called("bad-1").len() == 2).await;
        let [(shard, first), (_, second)] = called("bad-1")[..] else { panic!("called twice") };
        assert_eq!((first, second), (1, 2));
        let epochs = ledger.leases(&name("trips")).await.unwrap().into_iter().map(|lease| lease.epoch.0);
        // A task that was next on the blocked thread may have waited with it.
        assert!(epochs.filter(|epoch| *epoch > 1).count() <= 2, "the other shards stayed as they were");
        until("nothing is stuck", || watch.stuck().is_empty()).await;

        gate.set(false);
        // Another row of the same shard.
        let more = (2..).map(|i| format!("bad-{i}"));
        let row = more.into_iter().find(|row| ShardId::of(row, 8) == shard).unwrap();
        put(&cells, &row).await;
        let expected = Stuck::Shard(ShardRef { source: name("trips"), shard });
        until("it cannot be aborted", || watch.stuck().contains(&expected)).await;
        sleep(Duration::from_millis(500)).await;
        notices(&socket);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(notices(&socket), 0, "the watchdog goes hungry");
        for row in others("while") {
            if ShardId::of(&row, 8) != shard {
                put(&cells, &row).await;
            }
        }
        let handled = || calls.lock().unwrap().iter().filter(|(row, ..)| row.starts_with("while")).count();
        // All but what waits behind the blocked thread.
        until("the other shards work", || handled() >= 20).await;

        gate.set(true);
        until("it ends", || watch.stuck().is_empty()).await;
        until("it is fed again", || notices(&socket) > 0).await;
        until("and its shard works", || called(&row).len() == 2).await;
        stop.cancel();
    };
    let all = async { tokio::join!(work, scenario) };
    tokio::select! {
        _ = all => {}
        () = feeder => {}
    }
    planted::plant("");
}
