"""The handler of the kill test: appends start and end of each call to a file before it answers.

Usage: handler.py CALLS_FILE. Fails one call in fifty, and reports so.
"""
import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

calls = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
answering = threading.Lock()


def note(record):
    """One write with O_APPEND: lines of several processes do not mix."""
    os.write(calls, (json.dumps(record) + "\n").encode())


def answer(record):
    with answering:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


def handle(event):
    data = event["data"]
    call = {
        "id": event["id"],
        "row": data["row_key"],
        "shard": data["shard"],
        "added_id": data["added_id"],
        "epoch": event["epoch"],
        "attempt": event["attempt"],
        "pid": os.getpid(),
    }
    note({"at": "start", **call})
    time.sleep(random.uniform(0.01, 0.05))
    if random.random() < 0.02:
        note({"at": "end", "verdict": "failed", **call})
        answer({"id": event["id"], "verdict": "failed", "error": "on purpose"})
    else:
        note({"at": "end", "verdict": "done", **call})
        answer({"id": event["id"], "verdict": "done"})


answer({"ready": {"protocol": 1, "concurrency": 8}})
with ThreadPoolExecutor(8) as pool:
    for line in sys.stdin:
        message = json.loads(line)
        for event in [message["event"]] if "event" in message else message["events"]:
            pool.submit(handle, event)
