//! Changes of owner, told in the log: a line for all shards of a datastore that changed for one reason at one time. A worker
//! that joins a group of 4096 shards would else say so a thousand times.

use crate::cell::{Name, SessionId, ShardId, ShardRef};
use std::collections::{BTreeMap, BTreeSet};

/// What happened to shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Move {
    /// This worker claimed them.
    Took,
    /// This worker handed them over.
    HandedOver,
    /// They are no longer this worker's, though it did not hand them over.
    Lost,
}

/// A move, its reason, the other session if one is known, and the datastore.
type Kind = (Move, &'static str, Option<SessionId>, Name);

/// Changes of owner that are not told yet.
#[derive(Default)]
pub(super) struct Moves(BTreeMap<Kind, BTreeSet<ShardId>>);

impl Moves {
    /// Notes one. `other` is who had it, or who should have it now.
    pub(super) fn note(&mut self, what: Move, reason: &'static str, other: Option<&SessionId>, shard: &ShardRef) {
        let kind = (what, reason, other.cloned(), shard.source.clone());
        self.0.entry(kind).or_default().insert(shard.shard);
    }

    /// Tells all of them.
    pub(super) fn tell(self) {
        for ((what, reason, other, datastore), shards) in self.0 {
            let (number, shards) = (shards.len(), ranges(&shards));
            let other = other.as_ref().map(tracing::field::display);
            match what {
                Move::Took => tracing::info!(%datastore, shards, number, reason, from = other, "took shards"),
                Move::HandedOver => {
                    tracing::info!(%datastore, shards, number, reason, to = other, "handed shards over")
                }
                Move::Lost => tracing::info!(%datastore, shards, number, reason, to = other, "lost shards"),
            }
        }
    }
}

/// Numbers as a person writes them: `0-3,7`.
fn ranges(shards: &BTreeSet<ShardId>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for ShardId(shard) in shards {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *shard => *last = *shard,
            _ => runs.push((*shard, *shard)),
        }
    }
    let run = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_runs() {
        let told = |shards: &[u32]| ranges(&shards.iter().copied().map(ShardId).collect());
        assert_eq!(told(&[0, 1, 2, 3]), "0-3");
        assert_eq!(told(&[7]), "7");
        assert_eq!(told(&[9, 1, 2, 4, 8]), "1-2,4,8-9");
        assert_eq!(told(&(0..4096).collect::<Vec<_>>()), "0-4095");
    }
}
