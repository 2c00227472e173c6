#!/usr/bin/env python3
"""bill_rider: charges the rider when a trip has ended.

The example of the article that cellhook comes from. When a trip ends, somebody puts its BASE cell, say {"fare": 12}.
cellhook hands the cell to this program, and the program answers with a STATUS cell for the same row, which cellhook
puts: {"is_completed": true, "result": ...}.

cellhook starts this program and talks to it on standard input and output, one JSON object a line. What it prints on
standard error goes to cellhook's log. docs/handlers.md has the whole contract; all of it that matters is below.

Two variables for playing: BILL_RIDER_FAILURES is the share of charges that fail (default 0.2), and with
BILL_RIDER_SEED set, the same charges fail every time. Set them in the handler's `env`.
"""

import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

CONCURRENCY = 8  # trips that we bill at the same time
REMEMBERED = 100_000  # charges; a real processor remembers keys for days


class CardProcessor:
    """A pretended card processor: slow, and now and then out of order, as real ones are.

    Like real ones, it takes an idempotency key: the same key is never charged twice, however often we ask.
    """

    def __init__(self):
        self.failures = float(os.environ.get("BILL_RIDER_FAILURES", "0.2"))
        self.seed = os.environ.get("BILL_RIDER_SEED")
        self.charged = {}  # the last charges, by their keys
        self.lock = threading.Lock()

    def charge(self, key, amount, attempt):
        time.sleep(0.02)  # the network
        dice = random.Random(f"{self.seed}/{key}/{attempt}") if self.seed else random
        with self.lock:
            if key not in self.charged:
                if dice.random() < self.failures:
                    raise ConnectionError("the card processor does not answer")
                self.charged[key] = amount
                if len(self.charged) > REMEMBERED:
                    del self.charged[next(iter(self.charged))]  # the oldest
            return {"charged": self.charged[key], "receipt": key}


def bill(event, processor):
    """Handles one event, and returns the answer to it."""
    trip = event["data"]

    # The trigger has `include = ["STATUS"]`, so the event brings the row's latest STATUS cell along. If the trip is
    # billed already, there is nothing to do: the same event may come twice, after a crash for example.
    status = trip["latest"]["STATUS"]
    if status and isinstance(status["body"], dict) and status["body"].get("is_completed"):
        return {"verdict": "done"}

    body = trip["body"]
    fare = body.get("fare") if isinstance(body, dict) else None
    if isinstance(fare, bool) or not isinstance(fare, (int, float)):  # in Python, True is an int
        # No retry will help, so a person has to look: `cellhook parked` shows it.
        return {"verdict": "dead_letter", "error": f"a trip is an object with a number as its fare, not {body!r}"}

    try:
        # A crash between the charge and our answer brings the event again. Its id stays the same, so the processor
        # knows that it has charged this trip.
        result = processor.charge(event["id"], fare, event["attempt"])
    except ConnectionError as error:
        return {"verdict": "failed", "error": f"could not bill the rider: {error}"}  # cellhook tries again later

    print(f"{trip['row_key']}: charged {fare}", file=sys.stderr)
    return {
        "verdict": "done",
        # A row other than the trip's could be named here; the version of the cell (ref_key) is chosen so that a
        # repeated answer writes the same cell.
        "put": [{"column": "STATUS", "body": {"is_completed": True, "result": result}}],
    }


def main():
    processor = CardProcessor()
    write = threading.Lock()

    def say(message):
        with write:  # one whole line at a time
            print(json.dumps(message), flush=True)

    def handle(event):
        try:
            answer = bill(event, processor)
        except Exception as error:  # a mistake of ours must not leave the event without an answer
            answer = {"verdict": "failed", "error": repr(error)}
        say({"id": event["id"], **answer})

    # First of all: we are ready, and take so many events at a time.
    say({"ready": {"protocol": 1, "concurrency": CONCURRENCY}})

    # Then events come, and answers go, in any order. When the input ends, cellhook wants us to stop: the pool finishes
    # what it has, and so do we.
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            # One event, or several if the trigger has `batch`.
            for event in message["events"] if "events" in message else [message["event"]]:
                pool.submit(handle, event)


if __name__ == "__main__":
    main()
