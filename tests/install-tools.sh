#!/bin/sh
# Installs what some tests need beyond Rust, from Debian's packages: promtool, which holds metrics and alert rules to
# Prometheus's rules; systemd-analyze and strace, which prove the unit; ip, which sets hosts apart; and what checks completions and manual pages.
# Installs what is missing and starts no service. Needs the rights for apt-get, or sudo.
set -eu

# A command, and the package that has it.
tools='
promtool prometheus
systemd-analyze systemd
strace strace
ip iproute2
zsh zsh
fish fish
mandoc mandoc
dpkg-shlibdeps dpkg-dev
'

missing=
for tool in $(echo "$tools" | awk 'NF { print $1 ":" $2 }'); do
    command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool##*:}"
done
# Tools of cargo come from their sources, unoptimized: what they do is quick, and building them is not. cargo-deb makes the
# Debian package, cargo-deny looks at what is depended on, cargo-mutants plants bugs.
project=$(cd "$(dirname "$0")/.." && pwd)
for tool in cargo-deb@3.8.0 cargo-deny@0.20.2 cargo-mutants@27.1.0; do
    if [ ! -x "$project/target/tools/bin/${tool%@*}" ]; then
        cargo install "$tool" --locked --no-default-features --debug --quiet --root "$project/target/tools"
    fi
done
if [ -z "$missing" ]; then
    echo "all tools are installed"
    exit 0
fi

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
# No service of a package starts: its policy is asked first, and 101 forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi
$as_root apt-get update -qq
# shellcheck disable=SC2086 # a list
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing
# Nor at the next start of the machine: of a package that is a daemon only its tools are wanted.
for package in $missing; do
    $as_root systemctl disable --quiet "$package" 2>/dev/null || true
done
echo "installed:$missing"
