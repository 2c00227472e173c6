"""The handler of the kill test: notes start and end of each call in the history before it answers.

Usage: handler.py HISTORY SEED

One thread, so that the order of its notes is the order of its deeds: a call has started when its event was read, and at
most one call has a noted end and no answer yet. How long a call takes, and whether it fails, follows from the seed, the
event and the attempt. On SIGUSR1 it reads all that is there, and then notes that nothing more was given to it.
"""
import heapq
import json
import os
import select
import signal
import sys
import time
import zlib

history = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
seed = sys.argv[2]
me = {"pid": os.getpid(), "worker": os.getppid()}


def note(record):
    """One write with O_APPEND: lines of several processes do not mix, and their order is that of the deeds."""
    os.write(history, (json.dumps(record) + "\n").encode())


def answer(record):
    try:
        os.write(1, (json.dumps(record) + "\n").encode())
    except BrokenPipeError:
        pass  # The worker is gone; what was begun is finished all the same.


def start(event):
    data = event["data"]
    call = {"id": event["id"], "row": data["row_key"], "shard": data["shard"], "added_id": data["added_id"]}
    call |= {"epoch": event["epoch"], "attempt": event["attempt"], **me}
    note({"at": "start", **call})
    lot = zlib.crc32(f"{seed} {call['id']} {call['attempt']}".encode())
    seconds = 0.3 if lot % 64 == 1 else 0.005 + lot % 1000 / 1000 * 0.035
    heapq.heappush(calls, (time.monotonic() + seconds, call["id"], lot % 25 == 0, call))


def end(identifier, fails, call):
    note({"at": "end", "verdict": "failed" if fails else "done", **call})
    if fails:
        answer({"id": identifier, "verdict": "failed", "error": "on purpose"})
    else:
        answer({"id": identifier, "verdict": "done"})


calls = []  # Under way, by when they end.
rest = b""
woken, wakes = os.pipe()
os.set_blocking(0, False)
os.set_blocking(wakes, False)
signal.set_wakeup_fd(wakes)
signal.signal(signal.SIGUSR1, lambda *_: None)
note({"at": "up", **me})
answer({"ready": {"protocol": 1, "concurrency": 8}})
given = True
while given or calls:
    wait = max(0, calls[0][0] - time.monotonic()) if calls else None
    ready, _, _ = select.select([woken] + [0] * given, [], [], wait)
    while given:
        try:
            read = os.read(0, 1 << 16)
        except BlockingIOError:
            break
        given = bool(read)
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            message = json.loads(line)
            for event in [message["event"]] if "event" in message else message["events"]:
                start(event)
    if woken in ready:
        os.read(woken, 64)
        note({"at": "idle", **me})
    while calls and calls[0][0] <= time.monotonic():
        _, identifier, fails, call = heapq.heappop(calls)
        end(identifier, fails, call)
