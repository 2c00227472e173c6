#!/usr/bin/env bash
# Makes the Debian package of a release binary, and prints its path. Needs cargo-deb (cargo install cargo-deb) and dpkg-dev.
#   systemd/deb/build.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
# Where tests/install-tools.sh has it.
PATH=$PWD/target/tools/bin:$PATH
binary=${CARGO_TARGET_DIR:-target}/release/cellhook
# As a rule it is built; but `cargo test --release` leaves another one in its place, with what tests may plant.
cargo build --release --locked --quiet --bin cellhook
made=target/package
rm -rf "$made"
mkdir -p "$made/completions"
"$binary" man --dir "$made/man" 2>/dev/null
find "$made/man" -name '*.1' -exec gzip -9n {} +
for shell in bash zsh fish; do
    "$binary" completions "$shell" >"$made/completions/$shell"
done
cargo deb --no-build --no-strip --locked --quiet --output "$made/cellhook.deb" >/dev/null
echo "$PWD/$made/cellhook.deb"
