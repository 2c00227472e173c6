"""Judges the kill test from two files alone: what `put` acknowledged, and what the handlers noted.

Usage: checker.py ACKNOWLEDGED CALLS WINDOW LEAST_SHARDS
       checker.py --self-test

Shares no code and no data with the daemon. Exit code 0 only if all of this holds:
  handled   every cell that was acknowledged as new has a call that ended with "done"
  order     within an epoch, the calls of a row start in log order and never overlap, retries included
  repeats   calls of a cell after its first, less those whose failure was reported, are in each shard at most the window
            times the changes of owner (distinct epochs seen there, less one), plus calls in flight in children that ended
  tested    at least so many shards were called for in a later epoch than their first, for cells not called before
"""
import json
import sys
from collections import Counter, defaultdict


def check(acknowledged, calls, window, least_shards):
    """The faults found, as text."""
    faults = []
    done = {(c["shard"], c["added_id"]) for c in calls if c["at"] == "end" and c["verdict"] == "done"}
    cells = {(a["shard"], a["added_id"]) for a in acknowledged if a.get("status") == "new"}
    lost = sorted(cells - done)
    if lost:
        faults.append(f"handled: {len(lost)} acknowledged cells were never handled, such as {lost[:5]}")

    # Order: the file is one total order, since each line is one appending write.
    running = defaultdict(set)
    last = {}
    ended = set()
    for call in calls:
        lane = (call["row"], call["epoch"])
        this = (call["id"], call["attempt"], call["pid"])
        if call["at"] == "end":
            running[lane].discard(this)
            ended.add(this)
            continue
        if running[lane]:
            faults.append(f"order: row {lane[0]} epoch {lane[1]}: {this} starts while {sorted(running[lane])} runs")
        if last.get(lane, 0) > call["added_id"]:
            faults.append(f"order: row {lane[0]} epoch {lane[1]}: {call['added_id']} starts after {last[lane]}")
        last[lane] = max(last.get(lane, 0), call["added_id"])
        running[lane].add(this)

    epochs = defaultdict(set)
    starts = defaultdict(Counter)
    failed = defaultdict(Counter)
    cut_off = Counter()
    first_epoch = {}
    moved_with_work = set()
    for call in calls:
        shard, cell = call["shard"], call["added_id"]
        if call["at"] == "end":
            failed[shard][cell] += call["verdict"] == "failed"
            continue
        epochs[shard].add(call["epoch"])
        starts[shard][cell] += 1
        if (call["id"], call["attempt"], call["pid"]) not in ended:
            cut_off[shard] += 1
        first = first_epoch.setdefault(shard, call["epoch"])
        if call["epoch"] > first and starts[shard][cell] == 1:
            moved_with_work.add(shard)
    repeats_in_all = 0
    for shard in starts:
        repeats = sum(max(0, n - 1 - failed[shard][cell]) for cell, n in starts[shard].items())
        repeats_in_all += repeats
        bound = window * (len(epochs[shard]) - 1) + cut_off[shard]
        if repeats > bound:
            faults.append(f"repeats: shard {shard}: {repeats}, at most {bound} in {len(epochs[shard])} epochs")
    if len(moved_with_work) < least_shards:
        faults.append(f"tested: only {len(moved_with_work)} shards changed owner with cells undone, not {least_shards}")
    print(
        f"{len(cells)} cells acknowledged, {len(done)} handled, {sum(c['at'] == 'start' for c in calls)} calls, "
        f"{repeats_in_all} repeats, {sum(len(e) - 1 for e in epochs.values())} changes of owner, "
        f"{sum(cut_off.values())} calls cut off, {len(moved_with_work)} shards moved with cells undone"
    )
    return faults


def read(path):
    records = []
    with open(path) as file:
        for line in file:
            try:
                records.append(json.loads(line))
            except ValueError:
                # The last line of a process that was killed while it wrote.
                continue
    return records


def self_test():
    """The checker itself: a good history passes, each doctored one is found by name."""

    def ack(shard, added_id):
        return {"shard": shard, "added_id": added_id, "status": "new"}

    def call(shard, added_id, epoch, verdict="done", attempt=1, row=None):
        base = {"id": f"{shard}/{added_id}", "row": row or f"r{shard}", "shard": shard, "added_id": added_id}
        base |= {"epoch": epoch, "attempt": attempt, "pid": 1}
        return [{"at": "start", **base}, {"at": "end", "verdict": verdict, **base}]

    def history():
        calls = []
        for shard in range(3):
            calls += call(shard, 1, 1) + call(shard, 2, 1, "failed") + call(shard, 2, 1, attempt=2)
            calls += call(shard, 2, 2) + call(shard, 3, 2)
        return [ack(shard, added_id) for shard in range(3) for added_id in (1, 2, 3)], calls

    acks, calls = history()
    assert check(acks, calls, 1, 3) == [], "a good history"
    assert any(f.startswith("handled") for f in check(acks + [ack(0, 4)], calls, 1, 3)), "a lost cell"
    assert any(f.startswith("handled") for f in check(acks, calls[:-2], 1, 2)), "a cell that was not called"
    unfinished = calls[:-1]
    assert any(f.startswith("handled") for f in check(acks, unfinished, 1, 2)), "a call without an end"
    assert any(f.startswith("order") for f in check(acks, calls + call(0, 1, 2), 9, 3)), "a reordered row"
    overlap = calls + [call(1, 4, 2)[0]] + call(1, 5, 2)
    assert any(f.startswith("order") for f in check(acks, overlap, 9, 3)), "two calls of a row at a time"
    repeated = calls + call(2, 3, 2) + call(2, 3, 2)
    assert any(f.startswith("repeats") for f in check(acks, repeated, 1, 3)), "too many repeats"
    still = [c for c in calls if c["epoch"] == 1]
    assert any(f.startswith("tested") for f in check([], still, 1, 3)), "nothing happened"
    print("the checker finds what it should")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        sys.exit(0)
    found = check(read(sys.argv[1]), read(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    for fault in found[:20]:
        print(fault)
    sys.exit(1 if found else 0)
