//! How long the pure parts take: `cargo bench`, or `cargo bench -- --quick`. Nothing here waits for a disk or another task.

use cellhook::{
    cell::{AddedId, Cell, CellKey, Datastore, Incarnation, Millis, Name, NewCell, Segment, SessionId, ShardId},
    checkpoint::Window,
    filter::{Decision, Filter},
    lease::assign,
    store::{BATCH_MAX, segment},
};
use criterion::{BatchSize, Criterion, Throughput};
use std::{collections::BTreeMap, hint::black_box};

/// Cells of a window, as it is by default.
const WINDOW: u64 = 1000;

/// A full segment of bodies of 1 KB, of which zstd saves about half.
fn cells() -> Vec<NewCell> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut cell = |i: u64| {
        let pad: String = std::iter::repeat_with(|| random.alphanumeric()).take(500).collect();
        let body = format!("{{\"fare\":{},\"city\":\"Berlin\",\"note\":\"{pad}{}\"}}", i * 10, "x".repeat(450));
        let key = CellKey { row_key: format!("row-{i:x}").into(), column: "BASE".into(), ref_key: i };
        NewCell { key, body: body.into(), origin: None }
    };
    (0..BATCH_MAX as u64).map(&mut cell).collect()
}

fn datastore(shards: u32) -> Datastore {
    let name = Name::new("trips").expect("a constant name is valid");
    Datastore { name, shards, incarnation: Incarnation::from_stored("0123456789abcdef") }
}

/// What an append and a read of the log do with a segment.
fn codec(criterion: &mut Criterion) {
    let cells = cells();
    let packed = segment::pack(&cells);
    let n = u32::try_from(cells.len()).expect("a segment is small");
    let segment = Segment { last: AddedId(cells.len() as u64), n, packed, created_at: Millis(0) };
    let mut group = criterion.benchmark_group("segment of 98 cells");
    group.throughput(Throughput::Elements(u64::from(n)));
    group.bench_function("pack", |bencher| bencher.iter(|| segment::pack(black_box(&cells))));
    group.bench_function("unpack", |bencher| bencher.iter(|| segment::unpack(ShardId(0), black_box(&segment))));
}

/// Cells that finish in any order, and what is stored of them.
fn window(criterion: &mut Criterion) {
    let mut order: Vec<u64> = (1..=WINDOW).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut order);
    let finish = |window: &mut Window, part: &[u64]| part.iter().for_each(|id| window.finish(AddedId(*id)));
    let mut half = Window::new(AddedId(0));
    finish(&mut half, &order[..order.len() / 2]);
    let (stored, _) = half.encode();
    let mut group = criterion.benchmark_group("window of 1000 cells");
    group.throughput(Throughput::Elements(WINDOW));
    group.bench_function("finish all, in any order", |bencher| {
        bencher.iter_batched_ref(|| Window::new(AddedId(0)), |window| finish(window, &order), BatchSize::SmallInput);
    });
    group.bench_function("encode, half finished", |bencher| bencher.iter(|| black_box(&half).encode()));
    group.bench_function("resume, half finished", |bencher| {
        bencher.iter(|| Window::resume(half.low(), black_box(&stored)));
    });
}

/// What each worker computes when another one comes or goes.
fn assignment(criterion: &mut Criterion) {
    let datastore = datastore(4096);
    let worker = |i| (SessionId::from_stored(&format!("worker{i}")), 1);
    let workers: BTreeMap<SessionId, u32> = (0..64).map(worker).collect();
    criterion.bench_function("assignment of 4096 shards to 64 workers", |bencher| {
        bencher.iter(|| assign(black_box(&datastore), black_box(&workers), 2));
    });
}

/// What a trigger asks of each cell before it is called.
fn filter(criterion: &mut Criterion) {
    let datastore = datastore(64);
    let NewCell { key, body, .. } = cells().swap_remove(5);
    let cell = Cell { key, shard: ShardId(0), added_id: AddedId(1), created_at: Millis(0), body };
    let of = |columns: &[String], expression| Filter::new(columns, expression).expect("it is a filter");
    let columns = ["STATUS".to_owned(), "BASE".to_owned()];
    let mut group = criterion.benchmark_group("filter");
    for (name, filter) in [
        ("columns", of(&columns, None)),
        ("CEL over the row key", of(&[], Some("subject.startsWith('row-')"))),
        ("CEL over the body of 1 KB", of(&columns, Some("has(data.body.fare) && data.body.fare > 0"))),
    ] {
        assert_eq!(filter.decide(&cell, &datastore), Decision::Call);
        group.bench_function(name, |bencher| bencher.iter(|| filter.decide(black_box(&cell), &datastore)));
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [codec, window, assignment, filter] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
