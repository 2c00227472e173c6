#!/bin/sh
# Plants bugs in the pure rooms (.cargo/mutants.toml), one at a time, and fails where no test beside the code sees one. Without
# arguments: in the lines that the last change touched, for eight minutes at most. With arguments: whatever cargo-mutants is told, as
# in `tests/mutants.sh --file src/checkpoint.rs`; `--file 'src/**'` is all of them.
set -eu
cd "$(dirname "$0")/.."
root=$PWD

# In a copy of what is committed, so that a bug that was planted cannot stay in the work tree; with the same dependencies.
copy=$root/target/mutants-tree
rm -rf "$copy"
mkdir -p "$copy"
git archive HEAD | tar -x -C "$copy"
cd "$copy"
export CARGO_TARGET_DIR="$root/target"

mutants() {
    limit=$1
    shift
    timeout "$limit" "$root/target/tools/bin/cargo-mutants" mutants --in-place --output "$root/target" --colors never "$@"
}

if [ $# -gt 0 ]; then
    mutants 0 "$@"
    exit
fi
cd "$root"
if ! git rev-parse --quiet --verify HEAD^1 >/dev/null; then
    echo "mutants: SKIPPED, since the last change has no parent here"
    exit
fi
git diff HEAD^1 HEAD -- src >"$root/target/mutants.diff"
cd "$copy"
number=$(mutants 60 --list --in-diff "$root/target/mutants.diff" 2>/dev/null | grep -c . || true)
echo "mutants: $number in the lines of the last change"
[ "$number" = 0 ] && exit
status=0
mutants 480 --in-diff "$root/target/mutants.diff" || status=$?
if [ "$status" = 124 ] && [ ! -s "$root/target/mutants.out/missed.txt" ]; then
    echo "mutants: not all were planted within eight minutes; those that were, were seen"
    exit
fi
exit "$status"
