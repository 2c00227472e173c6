//! What a verification costs, said before it begins. Pure.

use super::{Plan, pace::halves};
use crate::cell::Consistency::{Eventual, Strong};

/// Bytes of a packed cell of a log, where nobody knows better.
pub(super) const PACKED_CELL: usize = 256;
/// Bytes of a cell in `cells`, where nobody knows better.
const CELL: u64 = 1024;
/// Cells of a segment, where nobody knows better.
const SEGMENT_CELLS: u64 = 10;
/// Read units a shard: its tip, and the ends of its log.
const SHARD_UNITS: u64 = 4;
/// Read units a shard and group: its lease, between two readings of the tip, and once more with all others.
const GROUP_UNITS: u64 = 4;
/// Read units a shard and trigger: its two lanes.
const TRIGGER_UNITS: u64 = 2;

/// How much there is to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Shards.
    pub shards: u64,
    /// Groups with triggers on the datastore.
    pub groups: u64,
    /// Triggers on the datastore, of all these groups.
    pub triggers: u64,
    /// Cells: one for each place of each shard, trimmed or not.
    pub cells: u64,
    /// Cells that the log still has.
    pub logged: u64,
    /// Bytes of the table `cells`, if the store tells.
    pub cells_bytes: Option<u64>,
    /// Bytes of the table `log`, if the store tells.
    pub log_bytes: Option<u64>,
    /// Items of the table `log`, if the store tells.
    pub segments: Option<u64>,
}

/// What it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Read units, when nothing is wrong and nothing parked.
    pub units: u64,
    /// Cells of the log and of `cells` that are passed.
    pub passes: u64,
    /// Whether the store told the sizes, or usual ones were assumed.
    pub measured: bool,
}

/// Read units of a verification when nothing is wrong, without the parked cells and the lanes of retired triggers.
#[must_use]
pub fn estimate(sizes: &Sizes, plan: &Plan) -> Estimate {
    let log_bytes = sizes.log_bytes.unwrap_or(sizes.logged * PACKED_CELL as u64);
    let cells_bytes = sizes.cells_bytes.unwrap_or(sizes.cells * CELL);
    let segments = sizes.segments.unwrap_or(sizes.logged.div_ceil(SEGMENT_CELLS)).max(1);
    let log = halves(log_bytes, Strong);
    let scan = halves(cells_bytes, Eventual);
    let (passes, reads) = match plan.sample {
        None => (sizes.logged + sizes.cells, log + scan),
        Some(sample) => {
            let part = |all: u64| (u128::from(all) * u128::from(sample.per_million)).div_ceil(1_000_000);
            let part = |all| u64::try_from(part(all)).unwrap_or(u64::MAX);
            // Each cell of a segment is got, and for each cell of a slice its segment.
            let cell = halves(cells_bytes / sizes.cells.max(1), Strong);
            let segment = halves(log_bytes / segments, Strong);
            let compared = part(segments) * segment + part(sizes.logged) * cell;
            let looked_up = part(scan) + part(sizes.cells) * segment;
            (sizes.logged + part(sizes.cells), log + compared + looked_up)
        }
    };
    let of_a_shard = SHARD_UNITS + sizes.groups * GROUP_UNITS + sizes.triggers * TRIGGER_UNITS;
    let units = reads.div_ceil(2) + sizes.shards * of_a_shard;
    Estimate { units, passes, measured: sizes.cells_bytes.is_some() && sizes.log_bytes.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Sample;

    fn units(sizes: &Sizes, per_million: Option<u32>) -> u64 {
        let sample = per_million.map(|per_million| Sample { per_million, seed: 0 });
        estimate(sizes, &Plan { sample, rate: None }).units
    }

    #[test]
    fn the_whole_reads_each_table_once() {
        let sizes = Sizes {
            cells: 1_000_000,
            logged: 500_000,
            cells_bytes: Some(1 << 30),
            log_bytes: Some(128 << 20),
            ..Sizes::default()
        };
        // A gigabyte at half a unit, and 128 MB at one unit for 4 KB.
        assert_eq!(units(&sizes, None), 131_072 + 32_768);
        assert!(estimate(&sizes, &Plan::default()).measured);
        assert_eq!(estimate(&sizes, &Plan::default()).passes, 1_500_000);
        let guessed = Sizes { cells_bytes: None, log_bytes: None, ..sizes };
        assert!(!estimate(&guessed, &Plan::default()).measured);
        assert!((100_000..200_000).contains(&units(&guessed, None)), "{}", units(&guessed, None));
    }

    #[test]
    fn a_small_sample_is_cheaper_and_a_large_one_is_not() {
        let sizes = Sizes { cells: 1_000_000, logged: 1_000_000, ..Sizes::default() };
        assert!(units(&sizes, Some(10_000)) < units(&sizes, None));
        assert!(units(&sizes, Some(1_000_000)) > units(&sizes, None));
    }

    #[test]
    fn nothing_costs_next_to_nothing() {
        assert!(units(&Sizes { shards: 4, ..Sizes::default() }, None) < 50);
    }
}
