#!/bin/sh
# Holds what is depended on to deny.toml: licences, duplicates and sources always; advisories where their database can be reached.
set -eu
cd "$(dirname "$0")/.."

deny() {
    target/tools/bin/cargo-deny --locked --log-level error "$@"
}

deny check licenses bans sources

database=https://github.com/RustSec/advisory-db
if timeout 60 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1; then
    deny check advisories
else
    echo "advisories: SKIPPED, since their database, $database, cannot be reached from here"
fi
