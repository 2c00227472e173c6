"""One event at a time, and says so to the daemon, so that further calls wait in the daemon.

Usage: handler.py CALLS SECONDS       notes each start in CALLS: shard, added ID, epoch, and the worker's pid
"""
import json
import os
import sys
import time

calls = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
worker = os.getppid()
print('{"ready": {"protocol": 1, "concurrency": 1}}', flush=True)
for line in sys.stdin:
    event = json.loads(line)["event"]
    data = event["data"]
    os.write(calls, f"{data['shard']} {data['added_id']} {event['epoch']} {worker}\n".encode())
    time.sleep(float(sys.argv[2]))
    print(json.dumps({"id": event["id"], "verdict": "done"}), flush=True)
