#!/usr/bin/env bash
# Proves the Debian package of the release binary: it is installed on a copy of this system that is thrown away (an overlay, so
# root is needed), a worker handles a cell there as the package's user, and after the purge nothing is left but what was put.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" = 0 ] || { echo "SKIPPED: tests/deb.sh needs root to install a package" >&2; exit "${HOOKTEST_REQUIRE_ALL:-0}"; }
package=$("$project/systemd/deb/build.sh")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/upper" "$work/work" "$work/system"
cp "$package" "$work/cellhook.deb"

cat >"$work/inside" <<'INSIDE'
set -euo pipefail
fail() {
    echo "tests/deb.sh: $*" >&2
    exit 1
}
as_cellhook=(setpriv --reuid cellhook --regid cellhook --clear-groups --no-new-privs --inh-caps=-all env -i PATH=/usr/bin:/bin)
# What bears the name in the places that belong to packages.
named() {
    find /etc /usr /var /run -xdev -name '*cellhook*' | sort
}
named >/tmp/before
grep -E '^cellhook' /etc/passwd && fail "there is a user cellhook already"

dpkg -i /tmp/cellhook.deb >/tmp/log 2>&1 || fail "$(cat /tmp/log)"
[ "$(command -v cellhook)" = /usr/bin/cellhook ] || fail "the binary is not installed"
cellhook --version
cellhook check >/dev/null 2>&1 || fail "the installed config is not good"
for file in /lib/systemd/system/cellhook.service /etc/cellhook/cellhook.toml /usr/share/man/man1/cellhook-put.1.gz \
    /usr/share/bash-completion/completions/cellhook /usr/share/zsh/vendor-completions/_cellhook \
    /usr/share/fish/vendor_completions.d/cellhook.fish /usr/share/cellhook/alerts.yml /usr/share/doc/cellhook/copyright \
    /usr/share/doc/cellhook/docs/install.md /usr/share/doc/cellhook/config/cellhook.toml \
    /usr/share/doc/cellhook/examples/aws-credentials.conf; do
    [ -s "$file" ] || fail "$file is missing"
done
# The papers find each other, and all else that they link to.
(cd /usr/share/doc/cellhook && grep -oE '\]\([^)#:]+' README.md CHANGELOG.md docs/*.md | grep -v ':](http' | sort -u) >/tmp/links
[ "$(wc -l </tmp/links)" -gt 15 ] || fail "the papers have no links: $(cat /tmp/links)"
while IFS=: read -r paper link; do
    [ -s "/usr/share/doc/cellhook/$(dirname "$paper")/${link#??}" ] || fail "$paper links to ${link#??}, which is missing"
done </tmp/links
systemd-analyze verify --man=no /lib/systemd/system/cellhook.service >/tmp/log 2>&1 || fail "$(cat /tmp/log)"
[ ! -s /tmp/log ] || fail "$(cat /tmp/log)"
[ "$(stat -c '%U %a' /var/lib/cellhook)" = "cellhook 700" ] || fail "the state directory is not the user's own"

# A person edits the config; the service's command line runs as the service's user.
sed -i 's/:9464"/:0"/' /etc/cellhook/cellhook.toml
cat >>/etc/cellhook/cellhook.toml <<'CONFIG'
[datastores.trips]
shards = 4
[triggers.note]
source = "trips"
[triggers.note.handler]
kind = "command"
command = ["sh", "-c", "cat >> /var/lib/cellhook/handled"]
CONFIG
"${as_cellhook[@]}" /usr/bin/cellhook run --config /etc/cellhook/cellhook.toml >/tmp/said 2>&1 &
worker=$!
for _ in $(seq 600); do
    "${as_cellhook[@]}" cellhook put trips trip-1 BASE '{"fare": 12}' >/dev/null 2>&1 && break
    sleep 0.1
done
for _ in $(seq 600); do
    grep -qs '"subject":"trip-1"' /var/lib/cellhook/handled && break
    sleep 0.1
done
grep -q '"subject":"trip-1"' /var/lib/cellhook/handled || fail "the cell is not handled: $(cat /tmp/said)"
[ "$("${as_cellhook[@]}" cellhook get trips trip-1 BASE)" = '{"fare": 12}' ] || fail "the cell cannot be got"
kill -TERM "$worker"
wait "$worker" || fail "the worker ended with $?: $(cat /tmp/said)"

# The same version again, as an upgrade: the edited config stays.
dpkg -i /tmp/cellhook.deb >/tmp/log 2>&1 </dev/null || fail "$(cat /tmp/log)"
grep -q triggers.note /etc/cellhook/cellhook.toml || fail "the upgrade replaced the config"
[ "$("${as_cellhook[@]}" cellhook get trips trip-1 BASE)" = '{"fare": 12}' ] || fail "the upgrade lost the store"

dpkg -r cellhook >/tmp/log 2>&1 || fail "$(cat /tmp/log)"
[ -s /etc/cellhook/cellhook.toml ] && [ ! -e /usr/bin/cellhook ] || fail "removed: the config stays, the binary goes"
dpkg -P cellhook >/tmp/log 2>&1 || fail "$(cat /tmp/log)"
grep -q '/var/lib/cellhook is kept' /tmp/log || fail "the purge does not tell of the store: $(cat /tmp/log)"
[ -s /var/lib/cellhook/cellhook.db ] || fail "the purge deleted what people had put"

# And without a store, nothing at all is left.
rm -rf /var/lib/cellhook
dpkg -i /tmp/cellhook.deb >/tmp/log 2>&1 && dpkg -P cellhook >/tmp/log 2>&1 || fail "$(cat /tmp/log)"
named >/tmp/after
diff /tmp/before /tmp/after || fail "the purge left this behind"
! grep -E '^cellhook' /etc/passwd /etc/group || fail "the purge left the user behind"
INSIDE

# Whatever happens, no process of it is left.
unshare --mount --propagation private --pid --fork --kill-child sh -euc '
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/system"
    mount -t tmpfs tmpfs "$1/system/tmp"
    mount -t proc proc "$1/system/proc"
    mount --rbind /dev "$1/system/dev"
    cp "$1/cellhook.deb" "$1/inside" "$1/system/tmp/"
    exec chroot "$1/system" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp DEBIAN_FRONTEND=noninteractive bash /tmp/inside
' sh "$work"
echo "the Debian package installs, works, upgrades and goes: $(du -h "$package" | cut -f1)"
