//! What `--help` of each verb ends with.

pub(super) const RUN: &str = "\
Examples:
  cellhook run
  cellhook run --config /etc/cellhook/cellhook.toml";

pub(super) const INIT: &str = "\
Example:
  cellhook init";

pub(super) const CHECK: &str = "\
Examples:
  cellhook check
  CELLHOOK_GROUP=night cellhook check --json | jq .group";

pub(super) const PUT: &str = "\
Examples:
  cellhook put trips trip-1 BASE '{\"fare\": 12}'
  cellhook put trips --file cells.ndjson --json | jq 'select(.error)'";

pub(super) const GET: &str = "\
Examples:
  cellhook get trips trip-1 STATUS
  cellhook get trips trip-1
  cellhook get trips --file addresses.ndjson --json";

pub(super) const TAIL: &str = "\
Examples:
  cellhook tail trips --from 1h --follow
  cellhook tail trips --shard 5 --from 123 --json";

pub(super) const TRIM: &str = "\
Example:
  cellhook trim trips --before 30d --dry-run";

pub(super) const SHARDS: &str = "\
Examples:
  cellhook shards
  cellhook shards trips --json | jq 'select(.owner == null)'";

pub(super) const WORKERS: &str = "\
Examples:
  cellhook workers
  cellhook workers --all --json | jq 'select(.state == \"dead\").host'";

pub(super) const PARKED: &str = "\
Examples:
  cellhook parked --state dead
  cellhook parked retry --trigger bill_rider --row trip-1
  cellhook parked drop --trigger bill_rider --shard 5 --added-id 123";

pub(super) const TRIGGERS: &str = "\
Examples:
  cellhook triggers
  cellhook triggers pause bill_rider --reason 'the bank is closed'
  cellhook triggers resume bill_rider";

pub(super) const CHECKPOINT: &str = "\
Examples:
  cellhook checkpoint show bill_rider
  cellhook checkpoint rewind bill_rider --to 2026-11-21T03:00:00Z --dry-run
  cellhook checkpoint rewind bill_rider --to 123 --shard 5
  cellhook checkpoint skip bill_rider --shard 5 --added-id 123";

pub(super) const BENCH: &str = "\
Examples:
  cellhook bench
  cellhook bench --only catch-up --only latency --seconds 10 --json";

pub(super) const HEALTH: &str = "\
Examples:
  cellhook health
  cellhook health --ready --address 127.0.0.1:9464 --json | jq .details";

pub(super) const COMPLETIONS: &str = "\
Examples:
  cellhook completions bash > /etc/bash_completion.d/cellhook
  cellhook completions zsh > ~/.zfunc/_cellhook";

pub(super) const MAN: &str = "\
Examples:
  cellhook man | man -l -
  cellhook man --dir /usr/local/share/man/man1";
