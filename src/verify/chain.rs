//! Whether the segments of a shard are one dense chain up to the tip. Pure.
//!
//! | a segment | means |
//! | --- | --- |
//! | ends above the tip | it is beyond it |
//! | begins where the one before ended | it follows |
//! | begins above | the places between are missing |
//! | begins below | it overlaps, and does not count; but the first after a trim may begin below its end |

use crate::cell::{AddedId, Millis, SegmentKey, Tip};

/// What a segment is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It goes on where they ended.
    Follows,
    /// Places before it are missing.
    Hole { first: AddedId, last: AddedId },
    /// It claims places that they have.
    Overlaps,
    /// It ends above the tip.
    Beyond,
}

/// The chain so far.
#[derive(Debug)]
pub(super) struct Chain {
    tip: AddedId,
    end: AddedId,
    /// Whether a segment was taken.
    begun: bool,
    created_at: Option<Millis>,
}

impl Chain {
    /// Begins after what was trimmed.
    pub(super) fn new(tip: &Tip) -> Self {
        Self { tip: tip.tip, end: tip.trimmed_to, begun: false, created_at: None }
    }

    /// The last place of it.
    pub(super) fn end(&self) -> AddedId {
        self.end
    }

    /// Whether a segment begins in what was trimmed, which only the first may.
    pub(super) fn begins_in_trimmed(&self, key: SegmentKey) -> bool {
        !self.begun && key.first() <= self.end
    }

    pub(super) fn fit(&self, key: SegmentKey) -> Fit {
        let (first, expected) = (key.first(), self.end.next());
        if key.last > self.tip {
            Fit::Beyond
        } else if first > expected {
            Fit::Hole { first: expected, last: AddedId(first.0 - 1) }
        } else if first < expected && self.begun || first == AddedId(0) {
            Fit::Overlaps
        } else {
            Fit::Follows
        }
    }

    /// A segment is part of it.
    pub(super) fn take(&mut self, key: SegmentKey) {
        self.end = key.last;
        self.begun = true;
    }

    /// Places that are missing are passed.
    pub(super) fn pass(&mut self, last: AddedId) {
        self.end = last;
    }

    /// The time of the segment before, when it is after this one's.
    pub(super) fn goes_back(&mut self, created_at: Millis) -> Option<Millis> {
        let before = self.created_at.filter(|before| *before > created_at);
        self.created_at = Some(created_at);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::ShardId;

    fn chain(trimmed_to: u64, tip: u64) -> Chain {
        let (tip, trimmed_to) = (AddedId(tip), AddedId(trimmed_to));
        Chain::new(&Tip { shard: ShardId(0), tip, created_at: Millis(0), trimmed_to })
    }

    fn key(first: u64, last: u64) -> SegmentKey {
        SegmentKey { last: AddedId(last), n: u32::try_from(last - first + 1).unwrap() }
    }

    #[test]
    fn a_dense_chain_follows_to_its_tip() {
        let mut chain = chain(0, 6);
        for key in [key(1, 3), key(4, 4), key(5, 6)] {
            assert_eq!(chain.fit(key), Fit::Follows);
            chain.take(key);
        }
        assert_eq!(chain.end(), AddedId(6));
        assert_eq!(chain.fit(key(7, 7)), Fit::Beyond);
    }

    #[test]
    fn what_does_not_follow_is_told_apart() {
        let mut chain = chain(0, 9);
        assert_eq!(chain.fit(key(3, 4)), Fit::Hole { first: AddedId(1), last: AddedId(2) });
        chain.take(key(1, 3));
        assert_eq!(chain.fit(key(5, 6)), Fit::Hole { first: AddedId(4), last: AddedId(4) });
        assert_eq!(chain.fit(key(3, 4)), Fit::Overlaps);
        assert_eq!(chain.fit(key(4, 10)), Fit::Beyond, "over the tip");
        chain.pass(AddedId(4));
        assert_eq!(chain.fit(key(5, 6)), Fit::Follows);
    }

    #[test]
    fn only_the_first_may_begin_in_what_was_trimmed() {
        let mut chain = chain(5, 9);
        assert!(chain.begins_in_trimmed(key(4, 7)) && !chain.begins_in_trimmed(key(6, 7)));
        assert_eq!(chain.fit(key(4, 7)), Fit::Follows);
        chain.take(key(4, 7));
        assert!(!chain.begins_in_trimmed(key(7, 8)));
        assert_eq!(chain.fit(key(7, 8)), Fit::Overlaps);
    }

    #[test]
    fn time_never_goes_back() {
        let mut chain = chain(0, 9);
        let times = [5, 5, 7, 6, 7].map(|at| chain.goes_back(Millis(at)));
        assert_eq!(times, [None, None, None, Some(Millis(7)), None]);
    }
}
