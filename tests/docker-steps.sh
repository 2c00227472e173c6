#!/usr/bin/env bash
# Runs the Dockerfile's steps where there is no engine: the COPY and RUN of its first stage, word for word, in a copy of what the
# engine would be given; then its binary with the ENV, HEALTHCHECK and CMD of its last stage, as that stage's user, with an
# empty environment besides and nothing writable but the volume. What it cannot show: that the base images exist, and the RUN
# of the last stage, which belongs to Debian's image.
# The copy shares this project's target directory and, where root can mount it there, its path: what cargo has built counts, unless
# something that it was built from is missing in the copy.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
cd "$project"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "tests/docker-steps.sh: $*" >&2
    exit 1
}

# One instruction a line: comments go, continuation lines are joined.
sed -E '/^[[:space:]]*#/d' Dockerfile | sed -E ':a; /\\$/ { N; s/[[:space:]]*\\\n[[:space:]]*/ /; ba }' | grep -v '^$' >"$work/lines"
stage() { # its instructions of one kind
    awk -v wanted="$1" -v kind="$2" '$1 == "FROM" { stage++ } stage == wanted && $1 == kind { $1 = ""; print substr($0, 2) }' "$work/lines"
}
last=$(grep -c '^FROM ' "$work/lines")
pinned=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
grep -q "^FROM rust:$pinned-slim-bookworm AS build$" "$work/lines" || fail "the image of the build is not that of rust-version $pinned"
[ "$(stage 1 WORKDIR)" = /src ] && [ "$(stage 1 COPY)" = ". ." ] || fail "the first stage is not what this script knows"

# Always in the same place, for who cannot mount. `target` is a cache mount of the build.
tree=$project/target/docker/src
target=$(realpath "${CARGO_TARGET_DIR:-target}")
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
# shellcheck disable=SC2046 # a list of words
tar --create --exclude-vcs $(sed 's|^|--exclude=./|' .dockerignore) --file - . | tar --extract --file - --directory "$tree"
[ -f "$tree/Cargo.lock" ] && [ ! -e "$tree/out" ] || fail "the copy is not what the engine would be given"
in_tree() {
    if [ "$(id -u)" = 0 ]; then
        mkdir "$tree/target"
        unshare --mount --propagation private sh -euc '
            mount --bind "$2" "$1/target"
            mount --rbind "$1" "$3"
            cd "$3"
            sh -ec "$4"' sh "$tree" "$target" "$project" "$1"
        rmdir "$tree/target"
    else
        ln -sfn "$target" "$tree/target"
        (cd "$tree" && sh -ec "$1")
    fi
}
unset CARGO_TARGET_DIR
while read -r step; do
    echo "RUN $step"
    in_tree "$step" </dev/null
done < <(stage 1 RUN | sed -E 's/--mount=[^ ]+ *//g')
binary=$tree/out/cellhook
[ "$(stage "$last" COPY)" = "--from=build /src/out/cellhook /usr/bin/cellhook" ] && [ -x "$binary" ] || fail "the binary is not where it is copied from"

[ "$(id -u)" = 0 ] || { echo "SKIPPED: tests/docker-steps.sh needs root to run the last stage" >&2; exit "${HOOKTEST_REQUIRE_ALL:-0}"; }
# Its own root: this system's libraries, the binary, the config, and one directory that can be written to.
user=$(stage "$last" USER)
[ "$user" = 65532:65532 ] || fail "the image does not run as a user of its own"
words() { # of an instruction's JSON list
    stage "$last" "$1" | grep -o '\[.*\]' | python3 -c 'import json, sys; print(" ".join(json.load(sys.stdin)))'
}
[ "$(words ENTRYPOINT)" = "tini -- cellhook" ] || fail "the image does not begin with an init"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$work/root"
cat >"$work/config" <<'CONFIG'
[store]
kind = "embedded"
path = "/var/lib/cellhook/cellhook.db"
[datastores.trips]
shards = 4
[triggers.print]
source = "trips"
handler = { kind = "log" }
CONFIG
cat >"$work/inside" <<'INSIDE'
set -euo pipefail
work=$1 binary=$2 user=$3 run=$4 health=$5
shift 5
root=$work/root
mount -t tmpfs tmpfs "$root"
mkdir -p "$root/usr" "$root/app" "$root/etc/cellhook" "$root/var/lib/cellhook" "$root/proc" "$root/dev"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
mount --rbind /usr "$root/usr"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
cp "$binary" "$root/app/cellhook"
cp "$work/config" "$root/etc/cellhook/cellhook.toml"
mount -t tmpfs -o "uid=${user%:*},gid=${user#*:},mode=0700" tmpfs "$root/var/lib/cellhook"
mount -o remount,ro "$root"
within() {
    chroot --userspec="$user" --groups= "$root" /usr/bin/env -i PATH=/app:/usr/bin "$@"
}
within cellhook --version
! within touch /etc/cellhook/x 2>/dev/null || { echo "the root can be written to" >&2; exit 1; }
! within "$@" $health 2>/dev/null || { echo "nobody runs, and the health check says all is well" >&2; exit 1; }
# As `exec` of the image does it: the daemon is the process itself.
chroot --userspec="$user" --groups= "$root" /usr/bin/env -i PATH=/app:/usr/bin "$@" cellhook $run >"$work/said" 2>&1 &
worker=$!
for _ in $(seq 600); do
    within "$@" $health >/dev/null 2>&1 && break
    sleep 0.1
done
within "$@" $health
within "$@" cellhook put trips trip-1 BASE '{"fare": 12}'
for _ in $(seq 600); do
    grep -q '"subject":"trip-1"\|trip-1' "$work/said" && break
    sleep 0.1
done
grep -q trip-1 "$work/said"
kill -TERM "$worker"
wait "$worker"
INSIDE
# shellcheck disable=SC2046 # ENV is a list of words
unshare --mount --propagation private --pid --fork --kill-child bash "$work/inside" "$work" "$binary" "$user" "$(words CMD)" "$(words HEALTHCHECK)" \
    $(stage "$last" ENV | sed "s/:9464/:$port/") || fail "as the image starts it: $(cat "$work/said" 2>/dev/null)"
echo "the Dockerfile's steps work: $(du -h "$binary" | cut -f1)"
