"""A child for the tests of the exec handler. It does to each event what the event's body says.

usage: child.py MODE [CONCURRENCY]
"""

import json
import os
import subprocess
import sys
import threading
import time

HUNDRED_MB = 100 * 1024 * 1024
lock = threading.Lock()
gathered = []
in_flight = 0
busiest = 0


def say(line):
    with lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def answer(event, verdict="done", **more):
    global in_flight
    with lock:
        in_flight -= 1
    say(json.dumps({"id": event["id"], "verdict": verdict, **more}))


def put(event, body):
    answer(event, put=[{"column": "SEEN", "body": body}])


def when_there(event, path):
    """Answers when there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.005)
    put(event, {"pid": os.getpid()})


def handle(event, message):
    global in_flight, busiest
    in_flight += 1
    busiest = max(busiest, in_flight)
    body = event["data"]["body"]
    what = body["do"]
    if what == "say":  # exactly these lines, with the event's id in the place of ID
        in_flight -= 1
        for line in body["lines"]:
            say(line.replace("ID", event["id"]))
    elif what == "pid":
        put(event, {"pid": os.getpid()})
    elif what == "event":
        put(event, message)
    elif what == "busy":
        put(event, {"now": in_flight, "busiest": busiest})
    elif what == "environment":
        with open("/proc/self/environ", encoding="utf-8") as environ:
            put(event, sorted(environ.read().rstrip("\0").split("\0")))
    elif what == "gather":  # answer when there are so many, the last one first
        gathered.append(event)
        if len(gathered) == body["n"]:
            held = {"now": in_flight, "pid": os.getpid()}
            while gathered:
                put(gathered.pop(), held)
    elif what == "file":
        threading.Thread(target=when_there, args=(event, body["path"]), daemon=True).start()
    elif what == "exit":
        sys.stderr.write("first\nlast words\n")
        sys.stderr.flush()
        os._exit(body["code"])
    elif what == "answer_and_exit":
        answer(event)
        os._exit(0)
    elif what == "silence":
        pass
    elif what == "grandchild":  # never answered
        grandchild = subprocess.Popen(["sleep", "1000"])
        with open(body["path"] + ".new", "w", encoding="utf-8") as file:
            file.write(str(grandchild.pid))
        os.rename(body["path"] + ".new", body["path"])
    elif what == "long":  # a line of 100 MB, and then the answer
        block = "x" * (1024 * 1024)
        for _ in range(HUNDRED_MB // len(block)):
            sys.stdout.write(block)
        say("")
        answer(event)
    elif what == "flood":
        while True:
            sys.stdout.write("flood\n" * 1000)
    elif what == "flood_stderr":
        for _ in range(1000):
            sys.stderr.write("flood\n" * 1000)
        answer(event)
    elif what == "close_stdin":
        os.close(0)
        answer(event)
        time.sleep(1000)
    elif what == "sleep":  # reads nothing more
        time.sleep(1000)
    else:
        answer(event, "dead_letter", error="unknown: " + what)


def main():
    mode = sys.argv[1]
    concurrency = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    if mode == "never_ready":
        time.sleep(1000)
    elif mode == "garbled":
        say("Hello, I am a child!")
        time.sleep(1000)
    elif mode == "protocol_2":
        say('{"ready": {"protocol": 2, "concurrency": 1}}')
        time.sleep(1000)
    elif mode == "die":
        sys.exit("no module named nothing")
    elif mode == "endless":
        while True:
            sys.stdout.write("x" * 65536)
    elif mode == "die_once":  # the first start leaves a file and dies
        if not os.path.exists(sys.argv[3]):
            open(sys.argv[3], "w", encoding="utf-8").close()
            sys.exit("first start")
    say(json.dumps({"ready": {"protocol": 1, "concurrency": concurrency}}))
    if mode == "stubborn":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        for event in [message["event"]] if "event" in message else message["events"]:
            handle(event, message)
    if mode == "stubborn":
        time.sleep(1000)
    while in_flight > 0:
        time.sleep(0.005)


main()
