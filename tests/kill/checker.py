"""Judges the history of a kill test. Shares no code and no data with the daemon.

Usage: checker.py HISTORY KEY=NUMBER …      prints what it saw and each fault as "RULE: …"; exit code 0 only without one

The history is one file of JSON lines, to which all append with single writes, so that it is one total order:
  up, idle            pid, worker                   a handler's process is up; it has read all that it was given
  start, end          id, row, shard, added_id, epoch, attempt, pid, worker, and of an end its verdict; noted by the
                      handler when it has read the event, and before it answers
  ack                 row, shard, added_id          `put` acknowledged the cell
  kill, freeze        worker                        about to be struck (SIGKILL, SIGSTOP)
  continue            worker                        about to go on; its handlers have read all that they were given
  cut, healed         worker                        about to be cut off from the store; what it had given to its handlers
                      by now they have read, and from here on it has to know by itself that its time has passed
  stop, stopped       worker, clean                 about to be asked to leave; it has left, and whether it says that it
                      could hand over everything under the session that it had
  child               pid                           this handler's process is about to be killed

KEYS: window (cells of the trigger's window), and the least that must have happened for the test to prove anything:
cells, rows, kills, freezes, stops, children, shards, stake, cuts.

A change of owner of a shard is a change of the epoch under which it is called. A repeat is a call of a cell after its
first, less those whose failure the handler reported.
"""
import json
import sys
from collections import Counter, defaultdict

RULES = {}
# What a worker wakes up from, and by what.
PAUSES = {"freeze": "continue", "cut": "healed"}


def rule(function):
    RULES[function.__name__] = function
    return function


class Call:
    def __init__(self, at, record):
        self.start, self.end, self.verdict = at, None, None
        self.cell = (record["shard"], record["added_id"])
        self.shard, self.added_id, self.row = record["shard"], record["added_id"], record["row"]
        self.epoch, self.attempt = record["epoch"], record["attempt"]
        self.pid, self.worker = record["pid"], record["worker"]

    def __str__(self):
        text = f"line {self.start + 1}: shard {self.shard} cell {self.added_id} row {self.row} epoch {self.epoch}"
        return f"{text} attempt {self.attempt} worker {self.worker} pid {self.pid}"


class History:
    """The file, indexed."""

    def __init__(self, lines):
        self.torn, self.unpaired = 0, []
        self.calls, self.acks = [], {}
        self.blows = defaultdict(list)  # By kind: (line, worker or pid, record).
        under_way, self.last_end = {}, {}
        for at, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError:
                # The line of a process that was killed while it wrote, and perhaps the next one behind it.
                self.torn += 1
                try:
                    record = json.loads(line[line.rindex('{"at"') :])
                except ValueError:
                    continue
            kind = record["at"]
            if kind == "start":
                call = Call(at, record)
                self.calls.append(call)
                under_way.setdefault(self.key(record), []).append(call)
            elif kind == "end":
                open_calls = under_way.get(self.key(record))
                if not open_calls:
                    self.unpaired.append(at)
                    continue
                call = open_calls.pop()
                call.end, call.verdict = at, record["verdict"]
                self.last_end[call.pid] = call
            elif kind == "ack":
                self.acks.setdefault((record["shard"], record["added_id"]), (at, record["row"]))
            else:
                self.blows[kind].append((at, record.get("worker", record.get("pid")), record))
        self.by_cell, self.by_shard, self.by_row = defaultdict(list), defaultdict(list), defaultdict(list)
        for call in self.calls:
            self.by_cell[call.cell].append(call)
            self.by_shard[call.shard].append(call)
            self.by_row[call.row].append(call)
        # When a cell was done for the first time, by the word of its handler.
        self.done = {}
        for call in self.calls:
            if call.verdict == "done":
                self.done[call.cell] = min(call.end, self.done.get(call.cell, call.end))
        killed = {pid for _, pid, _ in self.blows["child"]}
        # Calls whose answer the daemon may never have got, because the handler's process ended under them.
        self.cut_off = {call for call in self.calls if call.end is None and call.pid in killed}
        self.cut_off |= {call for pid, call in self.last_end.items() if pid in killed}

    @staticmethod
    def key(record):
        return tuple(record[field] for field in ("id", "epoch", "attempt", "pid", "worker"))

    def struck(self, worker, at):
        """Whether this worker was killed, or was frozen or cut off, at this line."""

        def times(kind):
            return sum(w == worker and line < at for line, w, _ in self.blows[kind])

        return times("kill") or any(times(begin) > times(end) for begin, end in PAUSES.items())

    def epochs(self, shard):
        return sorted({call.epoch for call in self.by_shard[shard]})

    def changes(self):
        """Each change of owner: shard, the epoch before it, the one after it."""
        for shard in self.by_shard:
            epochs = self.epochs(shard)
            yield from ((shard, old, new) for old, new in zip(epochs, epochs[1:]))


# ---- nothing is lost ----


@rule
def called(history, least):
    """Every acknowledged cell is in the history."""
    for cell in sorted(history.acks.keys() - history.by_cell.keys()):
        yield f"shard {cell[0]} cell {cell[1]} was acknowledged and never called"


@rule
def handled(history, least):
    """Every cell that was called is done in the end."""
    for cell in sorted(history.by_cell.keys() - history.done.keys()):
        yield f"shard {cell[0]} cell {cell[1]} was called and never done"


@rule
def known(history, least):
    """Nothing is called that nobody put, or for another row."""
    for call in history.calls:
        if history.acks.get(call.cell, (0, None))[1] != call.row:
            yield f"{call} is no cell that was acknowledged"


# ---- order ----


@rule
def paired(history, least):
    """Every end has its start before it."""
    for at in history.unpaired:
        yield f"line {at + 1}: an end before its start"


@rule
def order(history, least):
    """Within an epoch the calls of a row start in log order and never overlap, retries included."""
    lanes = defaultdict(list)
    for call in history.calls:
        lanes[call.row, call.epoch].append(call)
    for lane in lanes.values():
        for before, after in zip(lane, lane[1:]):
            if after.added_id < before.added_id:
                yield f"{after} after cell {before.added_id}"
            # One whose process was killed has ended, though it could not say so.
            if before not in history.cut_off and (before.end is None or before.end > after.start):
                yield f"{after} while cell {before.added_id} is under way"


@rule
def passed(history, least):
    """No cell of a row is called before all those before it are done, whatever the epoch."""
    rows = defaultdict(set)
    for cell, (_, row) in history.acks.items():
        rows[row].add(cell)
    for call in history.calls:
        for cell in rows[call.row]:
            if cell[1] < call.added_id and history.done.get(cell, call.start) >= call.start:
                yield f"{call} before cell {cell[1]} was done"


# ---- one owner at a time ----


@rule
def owner(history, least):
    """Under one epoch of a shard, one worker calls."""
    owners = {}
    for call in history.calls:
        if owners.setdefault((call.shard, call.epoch), call.worker) != call.worker:
            yield f"{call} and worker {owners[call.shard, call.epoch]} call under one epoch"


@rule
def fenced(history, least):
    """Once a newer epoch has called, no call starts under an older one, but for what was already on its way to the
    handler of a worker that has been killed since, or is frozen or cut off."""
    newest = {}
    for call in history.calls:
        if call.epoch < newest.get(call.shard, 0) and not history.struck(call.worker, call.start):
            yield f"{call} starts under a passed epoch: {newest[call.shard]} has called"
        newest[call.shard] = max(call.epoch, newest.get(call.shard, 0))


# ---- repeats ----


@rule
def again(history, least):
    """Within an epoch a cell is called once more only for a failure that was reported, or a handler's process that ended."""
    for cell, calls in history.by_cell.items():
        for epoch in {call.epoch for call in calls}:
            mine = [call for call in calls if call.epoch == epoch]
            excused = sum(call.verdict == "failed" or call in history.cut_off for call in mine)
            if len(mine) - 1 > excused:
                yield f"shard {cell[0]} cell {cell[1]} epoch {epoch}: {len(mine)} calls, {excused} of them to be repeated"


@rule
def change(history, least):
    """At one change of owner, at most a window of cells is called again."""
    for shard, _, new in history.changes():
        mine = {call.cell for call in history.by_shard[shard] if call.epoch == new}
        before = [call for call in history.by_shard[shard] if call.epoch < new and call not in history.cut_off]
        repeated = mine & {call.cell for call in before if call.verdict != "failed"}
        if len(repeated) > least["window"]:
            yield f"shard {shard} epoch {new}: {len(repeated)} cells are called again, at most {least['window']}"


def repeats_of(history, shard):
    calls = [call for call in history.by_shard[shard] if call.verdict != "failed"]
    return len(calls) - len({call.cell for call in calls})


@rule
def repeats(history, least):
    """In each shard at most the window times the changes of owner, plus calls in flight in children that ended."""
    for shard in history.by_shard:
        count, changes = repeats_of(history, shard), len(history.epochs(shard)) - 1
        cut_off = sum(call.shard == shard for call in history.cut_off)
        bound = least["window"] * changes + cut_off
        if count > bound:
            yield f"shard {shard}: {count}, at most {bound} after {changes} changes of owner and {cut_off} calls cut off"


def graceful_stops(history):
    """Stops that are judged: the worker, its calls under the session with which it left, and of these the ones that
    were under way when it was asked to leave."""
    clean = {worker for _, worker, record in history.blows["stopped"] if record["clean"]}
    for at, worker, _ in history.blows["stop"]:
        if worker in clean:
            pauses = (blow for pair in PAUSES.items() for kind in pair for blow in history.blows[kind])
            since = max((line for line, w, _ in pauses if w == worker), default=-1)
            # An epoch that began before it was frozen or cut off may have been lost by that.
            first = {}
            for call in history.calls:
                first.setdefault((call.shard, call.epoch), call.start)
            mine = [c for c in history.calls if c.worker == worker and first[c.shard, c.epoch] > since]
            yield at, worker, mine, [c for c in mine if c.start < at and (c.end is None or c.end > at)]


@rule
def graceful(history, least):
    """What a worker called that left gracefully has ended, and what is done of it is called by nobody again."""
    for _, _, mine, _ in graceful_stops(history):
        for call in mine:
            if call.end is None and call not in history.cut_off:
                yield f"{call} did not end"
            later = [c for c in history.by_cell[call.cell] if c.epoch > call.epoch]
            if call.verdict == "done" and call not in history.cut_off and later:
                yield f"{later[0]} was done by worker {call.worker}, which left gracefully"


# ---- something was at stake ----


def moved_with_work(history):
    """Shards whose owner changed while a cell was stored and not done, and was done afterwards."""
    moved = set()
    for shard, old, new in history.changes():
        calls = history.by_shard[shard]
        begins = min(call.start for call in calls if call.epoch == new)
        ends = max((call.start for call in calls if call.epoch <= old and call.start < begins), default=-1)
        for cell in {call.cell for call in calls}:
            stored = min(history.acks.get(cell, (begins, None))[0], history.by_cell[cell][0].start)
            if stored <= ends and history.done.get(cell, -1) > begins:
                moved.add(shard)
                break
    return moved


def at_stake(history):
    """How often a cell was put while an earlier one of its row was under way, or had failed."""
    count = 0
    for cell, (at, row) in history.acks.items():
        earlier = {c.cell for c in history.by_row[row] if c.cell[1] < cell[1] and c.start < at}
        count += any(history.done.get(other, at + 1) > at for other in earlier)
    return count


def taken_over(history, pause):
    """Pauses of this kind during which another worker called in a shard for which the paused one had called last."""
    count = 0
    for at, worker, _ in history.blows[pause]:
        ends = history.blows[PAUSES[pause]]
        until = min((line for line, w, _ in ends if w == worker and line > at), default=1 << 62)
        last = {call.shard: call for call in history.calls if call.start < at}
        mine = {shard: call.epoch for shard, call in last.items() if call.worker == worker}
        during = (call for call in history.calls if at < call.start < until)
        count += any(call.worker != worker and call.epoch > mine.get(call.shard, 1 << 62) for call in during)
    return count


@rule
def tested(history, least):
    """Enough happened: a test in which nothing happens proves nothing."""
    saw = happened(history)
    for what in ("cells", "rows", "kills", "freezes", "stops", "children", "shards", "stake", "cuts"):
        if saw[what] < least[what]:
            yield f"{what}: {saw[what]}, and {least[what]} are wanted"


def happened(history):
    killed = {call.pid for call in history.cut_off}
    return {
        "cells": len(history.acks),
        "rows": len({row for _, row in history.acks.values()}),
        # Those that struck a worker that had called.
        "kills": sum(any(c.worker == w and c.start < at for c in history.calls) for at, w, _ in history.blows["kill"]),
        "freezes": taken_over(history, "freeze"),
        "cuts": taken_over(history, "cut"),
        # Those of a worker that had calls under way.
        "stops": sum(bool(under_way) for _, _, _, under_way in graceful_stops(history)),
        "children": sum(pid in killed for _, pid, _ in history.blows["child"]),
        "shards": len(moved_with_work(history)),
        "stake": at_stake(history),
    }


@rule
def readable(history, least):
    """Only the line of a killed process may be torn."""
    if history.torn > len(history.blows["child"]):
        yield f"{history.torn} lines cannot be read"


def main(path, *words):
    least = {key: int(number) for key, number in (word.split("=") for word in words)}
    with open(path) as file:
        history = History(file.read().splitlines())
    saw = happened(history)
    saw["calls"] = len(history.calls)
    saw["repeats"] = sum(repeats_of(history, shard) for shard in history.by_shard)
    saw["changes of owner"] = sum(1 for _ in history.changes())
    saw["cut off"] = len(history.cut_off)
    saw["failures"] = sum(call.verdict == "failed" for call in history.calls)
    saw["under way at a stop"] = sum(len(under_way) for _, _, _, under_way in graceful_stops(history))
    largest = Counter({shard: repeats_of(history, shard) for shard in history.by_shard}).most_common(1)
    saw["most repeats of a shard"] = largest[0][1] if largest else 0
    print(", ".join(f"{what} {number}" for what, number in saw.items()))
    sound = True
    for name, judge in RULES.items():
        for count, fault in enumerate(judge(history, least)):
            sound = False
            if count == 20:
                print(f"{name}: and more")
                break
            print(f"{name}: {fault}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
