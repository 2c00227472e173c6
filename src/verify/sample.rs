//! Which part is looked at when not all is: chosen by a hash, so that the same seed chooses the same.

use crate::cell::{AddedId, ShardId, Slice};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// All of it, in parts.
const MILLION: u32 = 1_000_000;

/// A part of a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// So many of a million, 1 or more.
    pub per_million: u32,
    /// Another seed chooses others.
    pub seed: u64,
}

impl Sample {
    fn hash(self, a: u64, b: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&b.to_le_bytes());
        xxh3_64_with_seed(&bytes, self.seed)
    }

    /// Whether a segment is looked at.
    pub(super) fn has(self, shard: ShardId, last: AddedId) -> bool {
        self.hash(u64::from(shard.0), last.0) % u64::from(MILLION) < u64::from(self.per_million)
    }

    /// The slices of rows that are looked at: at least one.
    pub(super) fn slices(self) -> Vec<Slice> {
        let per_million = self.per_million.clamp(1, MILLION);
        let of = (MILLION / per_million).max(100);
        let count = (u64::from(of) * u64::from(per_million)).div_ceil(u64::from(MILLION));
        let mut all: Vec<u32> = (0..of).collect();
        all.sort_by_cached_key(|index| self.hash(u64::from(*index), u64::MAX));
        all.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        all.into_iter().map(|index| Slice { index, of }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_the_same_again_and_about_as_many_as_was_said() {
        let sample = |per_million, seed| Sample { per_million, seed };
        let chosen = |sample: Sample| -> Vec<u64> {
            (0..10_000).filter(|last| sample.has(ShardId(3), AddedId(*last))).collect()
        };
        assert_eq!(chosen(sample(50_000, 1)), chosen(sample(50_000, 1)));
        assert_ne!(chosen(sample(50_000, 1)), chosen(sample(50_000, 2)));
        assert!((400..600).contains(&chosen(sample(50_000, 1)).len()), "{}", chosen(sample(50_000, 1)).len());
        assert_eq!(chosen(sample(MILLION, 1)).len(), 10_000);
    }

    #[test]
    fn slices_are_the_part_that_was_said() {
        let counts = [(MILLION, 100, 100), (50_000, 5, 100), (15_000, 2, 100), (1_000, 1, 1_000), (1, 1, MILLION)];
        for (per_million, count, of) in counts {
            let slices = Sample { per_million, seed: 7 }.slices();
            assert_eq!((slices.len(), slices[0].of), (count, of), "{per_million}");
            let mut indexes: Vec<u32> = slices.iter().map(|slice| slice.index).collect();
            indexes.sort_unstable();
            indexes.dedup();
            assert_eq!(indexes.len(), count, "each once");
        }
    }
}
