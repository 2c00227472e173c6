//! What `--help` of each verb ends with.

pub(super) const RUN: &str = "\
Examples:
  cellhook run
  cellhook run --config /etc/cellhook/cellhook.toml";

pub(super) const INIT: &str = "\
Examples:
  cellhook init
  cellhook init --deletion-protection --point-in-time-recovery --tag team=rides
  cellhook init --billing provisioned --read-units 20 --write-units 20 --update";

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

pub(super) const RETENTION: &str = "\
Examples:
  cellhook retention
  cellhook retention trips --json | jq .kept_by";

pub(super) const ERASE: &str = "\
Examples:
  cellhook erase trips rider-17 --dry-run
  cellhook erase trips rider-17 --yes";

pub(super) const SHARDS: &str = "\
Examples:
  cellhook shards
  cellhook shards trips --json | jq 'select(.owner == null)'
  cellhook shards show trips 5";

pub(super) const WORKERS: &str = "\
Examples:
  cellhook workers
  cellhook workers --all --json | jq 'select(.state == \"dead\").host'";

pub(super) const PARKED: &str = "\
Examples:
  cellhook parked --state dead --error timeout --newer 1h
  cellhook parked --count
  cellhook parked show bill_rider 5 123
  cellhook parked retry --trigger bill_rider --row trip-1
  cellhook parked drop --trigger bill_rider --shard 5 --added-id 123";

pub(super) const TRIGGERS: &str = "\
Examples:
  cellhook triggers
  cellhook triggers pause bill_rider --reason 'the bank is closed'
  cellhook triggers resume bill_rider --shard 5
  cellhook triggers rename bill_rider charge_rider
  cellhook triggers retire bill_rider --drop-parked";

pub(super) const CHECKPOINT: &str = "\
Examples:
  cellhook checkpoint show bill_rider
  cellhook checkpoint rewind bill_rider --to 2026-11-21T03:00:00Z --dry-run
  cellhook checkpoint rewind bill_rider --to 123 --shard 5
  cellhook checkpoint skip bill_rider --shard 5 --added-id 123";

pub(super) const IAM_POLICY: &str = "\
Examples:
  cellhook iam-policy
  cellhook iam-policy run --account 123456789012 --region eu-central-1 > worker.json";

pub(super) const VERIFY: &str = "\
Examples:
  cellhook verify trips
  cellhook verify --sample 1 --rate 200 --yes --json | jq 'select(.finding)'

Exit codes: 0 all holds, 1 something does not.";

pub(super) const BENCH: &str = "\
Examples:
  cellhook bench
  cellhook bench --markdown > figures.md
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
