#!/usr/bin/env bash
# Proves systemd/cellhook.service without an init: systemd-analyze accepts it and its drop-in without a word, its exposure is at
# most 1.5, and all that a working daemon and a Python handler ask of the kernel passes its system call filter.
#   tests/systemd.sh BINARY
set -euo pipefail
binary=$(realpath "$1")
project=$(cd "$(dirname "$0")/.." && pwd)
unit=$project/systemd/cellhook.service
work=$(mktemp -d)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

fail() {
    echo "tests/systemd.sh: $*" >&2
    exit 1
}

# It looks for the binary where the package has it; here it is elsewhere. Words of any kind are complaints.
verify() {
    local said
    said=$(systemd-analyze verify --man=no "$1" 2>&1) || fail "$said"
    [ -z "$said" ] || fail "$said"
}
mkdir -p "$work/bare" "$work/dropped/cellhook.service.d"
sed "s|/usr/bin/cellhook|$binary|" "$unit" >"$work/bare/cellhook.service"
verify "$work/bare/cellhook.service"
cp "$work/bare/cellhook.service" "$work/dropped/"
cp "$project/systemd/aws-credentials.conf" "$work/dropped/cellhook.service.d/"
verify "$work/dropped/cellhook.service"
# The check itself can fail.
sed 's/^LockPersonality=/LockPersonalty=/' "$work/bare/cellhook.service" >"$work/dropped/cellhook.service"
! (verify "$work/dropped/cellhook.service") 2>/dev/null || fail "systemd-analyze verify finds no misspelt key"
echo "systemd-analyze verify: the unit and its drop-in are good"

exposure=$(systemd-analyze security --offline=true --no-pager --threshold=15 "$unit") || fail "$exposure"
echo "$exposure" | tail -1

# A worker with a child that is called once, traced from start to end.
mkdir -p "$work/config"
cat >"$work/config/cellhook.toml" <<'CONFIG'
[store]
kind = "embedded"
[datastores.trips]
shards = 4
[metrics]
listen = "127.0.0.1:0"
[triggers.bill_rider]
source = "trips"
columns = ["BASE"]
include = ["STATUS"]
[triggers.bill_rider.handler]
kind = "exec"
command = ["python3", "bill_rider.py"]
dir = ".."
CONFIG
cp "$project/examples/bill_rider.py" "$work/"
cd "$work"
cp "$binary" cellhook
# As a user like the service's: root would ask for more, and be refused more.
as_user=()
if [ "$(id -u)" = 0 ]; then
    chown -R nobody "$work"
    as_user=(setpriv --reuid nobody --regid nogroup --clear-groups)
fi
"${as_user[@]}" ./cellhook init >/dev/null 2>&1
"${as_user[@]}" strace -f -qq -o trace -- ./cellhook run >said 2>&1 &
daemon=$!
"${as_user[@]}" ./cellhook put trips trip-1 BASE '{"fare": 12}' >/dev/null
billed() {
    "${as_user[@]}" ./cellhook get trips trip-1 STATUS 2>/dev/null | grep -q is_completed
}
for _ in $(seq 600); do
    billed && break
    sleep 0.1
done
billed || fail "$(cat said)"
# strace passes on no signal: the daemon is its child.
kill -TERM "$(pgrep -P "$daemon")"
wait "$daemon" || fail "the traced daemon ended with $?: $(cat said)"
daemon=
systemd-analyze syscall-filter --no-pager >groups 2>/dev/null
python3 - groups trace "$unit" <<'PYTHON'
import re, sys

groups, current = {}, None
for line in open(sys.argv[1]):
    word = line.split("#")[0].strip()
    if not word:
        continue
    if not line[0].isspace():
        current = groups.setdefault(word, set())
    else:
        current.add(word)

def members(name, seen=()):
    """A group's system calls, or the call itself."""
    if not name.startswith("@"):
        return {name}
    return set().union(*(members(member) for member in groups[name]))

allowed = set()
for line in open(sys.argv[3]):
    if line.startswith("SystemCallFilter="):
        value = line.split("=", 1)[1].strip()
        named = set().union(*(members(name) for name in value.lstrip("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
# systemd always allows these.
allowed |= members("@default") | {"execve", "exit", "exit_group", "rt_sigreturn", "sigreturn", "time", "gettimeofday"}
asked = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z]\w*)(?:\(| resumed)", open(sys.argv[2]).read(), re.M))
assert {"execve", "openat", "sendto"} & asked and len(asked) > 40, f"too little was traced: {asked}"
refused = sorted(asked - allowed)
assert not refused, f"the unit's filter refuses: {', '.join(refused)}"
print(f"system calls: all {len(asked)} that a daemon and its Python handler use pass the unit's filter")
PYTHON
